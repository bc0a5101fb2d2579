//! The log of a test.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;

/// Captures the log of this thread until the guard is dropped.
pub fn capture<W: Write>(writer: impl Fn() -> W + Send + Sync + 'static) -> DefaultGuard {
    // With a single subscriber, `tracing` asks the current thread's subscriber once, for all
    // threads, whether a new callsite is of interest: a test without a subscriber would disable the
    // callsite for the others.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    tracing::subscriber::set_default(tracing_subscriber::fmt().json().with_writer(writer).finish())
}

/// The captured log.
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub fn capture(&self) -> DefaultGuard {
        let logs = self.clone();
        capture(move || logs.clone())
    }

    pub fn events(&self) -> Vec<serde_json::Value> {
        let logged = self.0.lock().unwrap();
        logged
            .split_inclusive(|byte| *byte == b'\n')
            .map(|event| serde_json::from_slice(event).unwrap())
            .collect()
    }

    /// The output lines of the command.
    pub fn lines(&self, stream: &str) -> Vec<String> {
        let events = self.events();
        let lines = events
            .iter()
            .filter(|event| event["target"] == "command" && event["fields"]["stream"] == stream);
        lines.map(|event| event["fields"]["line"].as_str().unwrap().to_owned()).collect()
    }

    /// The texts of all warnings and errors.
    pub fn complaints(&self) -> Vec<String> {
        let events = self.events();
        let complaints =
            events.iter().filter(|event| event["level"] == "WARN" || event["level"] == "ERROR");
        complaints
            .map(|event| event["fields"]["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    pub fn warnings(&self) -> usize {
        self.events().iter().filter(|event| event["level"] == "WARN").count()
    }
}

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
