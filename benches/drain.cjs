// Drains a queue with sqs-consumer: drain.cjs QUEUE_URL CONCURRENCY MESSAGES [COMMAND...]

const { spawn } = require("node:child_process");
const { once } = require("node:events");
const { mkdtemp, rm, writeFile } = require("node:fs/promises");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { Consumer } = require("sqs-consumer");
const { SQSClient } = require("@aws-sdk/client-sqs");
const { S3Client, GetObjectCommand } = require("@aws-sdk/client-s3");

const [queueUrl, concurrency, messages, ...command] = process.argv.slice(2);

async function main() {
  const room = await mkdtemp(join(tmpdir(), "drain-"));
  const [sqs, s3] = [new SQSClient({}), new S3Client({ forcePathStyle: true })];
  let remaining = Number(messages);
  const consumers = [];
  const handleMessage = async (message) => {
    for (const record of JSON.parse(message.Body).Records) {
      const Key = decodeURIComponent(record.s3.object.key.replaceAll("+", " "));
      const object = await s3.send(new GetObjectCommand({ Bucket: record.s3.bucket.name, Key }));
      const file = join(room, message.MessageId);
      await writeFile(file, await object.Body.transformToByteArray());
      if (command.length > 0) {
        const [code] = await once(spawn(command[0], command.slice(1), { stdio: "ignore" }), "exit");
        if (code !== 0) throw new Error(`exit code ${code}`);
      }
      await rm(file);
    }
    return message;
  };
  for (let i = 0; i < Number(concurrency); i++) {
    const consumer = Consumer.create({ queueUrl, sqs, batchSize: 1, waitTimeSeconds: 0, pollingWaitTimeMs: 0, handleMessage });
    consumer.on("message_processed", () => {
      if (--remaining === 0) consumers.forEach((consumer) => consumer.stop());
    });
    consumers.push(consumer);
  }
  const stopped = consumers.map((consumer) => once(consumer, "stopped"));
  consumers.forEach((consumer) => consumer.start());
  await Promise.all(stopped);
  await rm(room, { recursive: true });
}

main();
