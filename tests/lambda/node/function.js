// A function in the form of AWS's samples for SQS events. The body of a message names what it does.

const fs = require("node:fs");

console.log(`loading ${process.pid}`);
if (fs.existsSync("broken")) {
  throw new Error("no model");
}

exports.handler = async (event, context) => {
  console.log(`event of ${event.Records.length}`);
  const batchItemFailures = [];
  for (const record of event.Records) {
    if (record.body === "fail") {
      batchItemFailures.push({ itemIdentifier: record.messageId });
    } else {
      await processMessage(record.body, context);
    }
  }
  return { batchItemFailures };
};

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function processMessage(body, context) {
  switch (body) {
    case "raise":
      throw new Error("bad row");
    case "crash":
      process.exit(0);
      break;
    case "wait":
      fs.writeFileSync("waits", "");
      await sleep(3600);
      break;
    case "slow":
      await sleep(9);
      break;
    case "describe":
      console.log(JSON.stringify({
        function: context.functionName,
        arn: context.invokedFunctionArn,
        memory: Number(context.memoryLimitInMB),
        seconds_left: context.getRemainingTimeInMillis() / 1000,
      }));
      break;
  }
  console.log(`processed ${body}`);
}

// For S3 events.
exports.ofS3 = async (event) => {
  const [{ eventName, s3 }] = event.Records;
  const key = decodeURIComponent(s3.object.key.replace(/\+/g, " "));
  console.log(`${eventName} s3://${s3.bucket.name}/${key}`);
};
