//! A warm worker without work, for `benches/run warm`.
//!
//! `handler TIMES PORT` is a server, and `handler TIMES` a Lambda function. For each message, it appends
//! a line to the file TIMES: the message's id and when it came, in nanoseconds since 1970.

use std::fs::File;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, thread};

fn main() -> Result<()> {
    let mut given = env::args().skip(1);
    let times = File::create(given.next().expect("handler TIMES [PORT]"))?;
    match given.next() {
        Some(port) => serve(&format!("127.0.0.1:{port}"), &times),
        None => function(&env::var("AWS_LAMBDA_RUNTIME_API").expect("set"), times),
    }
}

fn serve(address: &str, times: &File) -> Result<()> {
    for connection in TcpListener::bind(address)?.incoming().flatten() {
        let times = times.try_clone()?;
        // The client closes its connections at the end.
        thread::spawn(move || drop(answer(&connection, &times)));
    }
    Ok(())
}

fn answer(mut connection: &TcpStream, times: &File) -> Result<()> {
    let mut requests = BufReader::new(connection);
    connection.set_nodelay(true)?;
    while let Some((head, _)) = read(&mut requests)? {
        record(times, header(&head, "x-aws-sqsd-msgid:"))?;
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
    Ok(())
}

fn function(api: &str, times: File) -> Result<()> {
    let mut connection = TcpStream::connect(api)?;
    connection.set_nodelay(true)?;
    let mut answers = BufReader::new(connection.try_clone()?);
    let mut call = |method: &str, path: &str, body: &str| {
        let length = body.len();
        let head = format!("{method} /2018-06-01/runtime/invocation/{path} HTTP/1.1\r\nhost: {api}\r\n");
        connection.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes())?;
        read(&mut answers)
    };
    while let Some((head, event)) = call("GET", "next", "")? {
        let (_, id) = event.split_once(r#""messageId":""#).expect("an event of SQS");
        record(&times, id.split('"').next().expect("an id"))?;
        let request = header(&head, "lambda-runtime-aws-request-id:").to_owned();
        call("POST", &format!("{request}/response"), "{}")?;
    }
    Ok(())
}

fn record(mut times: &File, id: &str) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    times.write_all(format!("{id} {}\n", now.as_nanos()).as_bytes())
}

/// The head in lower case and the body of a request or an answer; `None` at the end of the connection.
fn read(from: &mut impl BufRead) -> Result<Option<(String, String)>> {
    let (mut head, mut line) = (String::new(), String::new());
    while from.read_line(&mut line)? > 2 {
        head.push_str(&line.to_ascii_lowercase());
        line.clear();
    }
    if head.is_empty() {
        return Ok(None);
    }
    let length = header(&head, "content-length:").parse().unwrap_or_default();
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some((head, String::from_utf8_lossy(&body).into())))
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}
