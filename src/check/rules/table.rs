//! All rules, one row each: `Variant "id" severity "name": "summary", "explanation"`.
//!
//! An id never changes its meaning, and the id of a removed rule is not reused. The explanation is
//! Markdown: why the finding matters, what to do, and an example if that is shorter. The code that
//! creates a finding names the sources for the behaviour of KEDA, Kubernetes and AWS.

rules! {
    // 0: the run itself, and its access to AWS.
    NoCredentials "LH001" Error "no-credentials": "No AWS credentials were found",
        "Every call to SQS and S3 is signed, so nothing else at AWS was checked. In a pod the credentials come from the service \
         account (EKS Pod Identity or IRSA); elsewhere set `AWS_PROFILE`, or `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.";
    AwsSetup "LH002" Error "aws-setup": "The AWS settings of this environment cannot be used",
        "The region, an endpoint or the CA bundle is missing or malformed, so nothing at AWS was checked. A run refuses to start for \
         the same reason. Correct the variable that the finding names.";
    SettingsRefused "LH003" Error "settings-refused": "leasehold refuses these settings",
        "A run with these flags and variables exits with code 78 before it receives a message, and KEDA replaces such a pod at every \
         poll. Correct the setting that the finding names. The finding is unchecked instead of an error if settings that are not in the file could resolve it.";
    Machine "LH004" Error "machine": "This machine cannot run the command",
        "The command is not in PATH or not executable, or the work directory cannot be used. It concerns the machine on which \
         `check` runs: run it in the pod's image.";
    ClockSkew "LH005" Error "clock-skew": "The clock of this machine is wrong",
        "AWS refuses signatures that are more than five minutes off; that is an error. From 30 seconds on it is a warning, since \
         clocks drift. Synchronise it with chrony or the Amazon Time Sync Service.";
    ShortPoll "LH006" Warning "short-poll": "The receive is a short poll",
        "With a wait below one second, SQS asks only some of its servers, and may answer that the queue is empty although a message \
         waits. The pod then exits without work. Set `--wait` (`LEASEHOLD_WAIT`) to 1s or more.";
    ShortLease "LH007" Warning "short-lease": "The visibility timeout is too short for a heartbeat",
        "The lease is extended each time a third of `--visibility-timeout` has passed. Below 30 seconds, one slow request and its retry may take longer than the remaining time: the lease is lost, and the work is stopped. Set it to 30s or more.";
    PushgatewayUnreachable "LH008" Warning "pushgateway-unreachable": "The Pushgateway does not answer",
        "A run works without it, but its metrics are lost. Correct `--pushgateway`, start the gateway, or open the network policy.";
    WarmOnce "LH009" Warning "warm-once": "A warm worker gets only one message",
        "With `--handler lambda` or `--handler http://…`, the command is started once and works on many messages, but `--max-messages` ends the pod after the first one. Set `--max-messages` (`LEASEHOLD_MAX_MESSAGES`) to the number of messages that a pod should process.";
    FilesUnseen "LH010" Warning "files-unseen": "A function does not know the directories of leasehold",
        "A Lambda function gets no `JOB_OUTPUT_DIR` and no `JOB_CHECKPOINT_DIR`, so `--output` and `--checkpoint` store nothing. Remove them, let the function write to S3 itself, or set `--output-at` to a path that it knows.";

    // 1: the manifest, its fields and its references.
    NoScaledJob "LH101" Error "no-scaled-job": "The file has no ScaledJob",
        "Only ScaledJobs are checked. Pass the rendered objects:\n\n```sh\nkubectl kustomize . | leasehold check --manifest -\n```";
    ApiVersion "LH102" Error "api-version": "KEDA ignores this apiVersion",
        "Kubernetes stores or rejects a ScaledJob of another group or version, but KEDA never acts on it. Write \
         `apiVersion: keda.sh/v1alpha1`.";
    NoJobTarget "LH103" Error "no-job-target": "spec.jobTargetRef is missing",
        "It holds the spec of the Job that KEDA creates; without it Kubernetes rejects the ScaledJob.";
    WrongType "LH104" Error "wrong-type": "A value has the wrong type",
        "Kubernetes rejects the object. In YAML quotes make the difference: `queueLength: \"1\"` is a string, `pollingInterval: 10` \
         is a number.";
    BelowMinimum "LH105" Error "below-minimum": "A number is below its minimum",
        "The schema of the ScaledJob sets a minimum for this field, and Kubernetes rejects the object.";
    UnknownValue "LH106" Error "unknown-value": "A field has a value that KEDA does not know",
        "The schema lists the values of this field. Kubernetes rejects any other value, or KEDA falls back to its default.";
    MisspelledField "LH107" Error "misspelled-field": "A field looks misspelled",
        "Kubernetes drops unknown fields without an error, unless `kubectl apply` validates strictly. The setting then has no effect. \
         Use the name that the finding proposes.";
    UnknownField "LH108" Warning "unknown-field": "The schema does not have this field",
        "It has no similar name in the schema of the KEDA version that leasehold knows. A newer KEDA may have it; an older one ignores \
         it. To check against your cluster's own schema, where it is an error:\n\n```sh\nkubectl get crd scaledjobs.keda.sh -o yaml > \
         crd.yaml\nleasehold check --manifest job.yaml --crd crd.yaml\n```";
    NestedTooDeep "LH109" Error "nested-too-deep": "A field of spec is inside jobTargetRef",
        "There it is an unknown field and is dropped. Fields such as `pollingInterval` and `triggers` are siblings of `jobTargetRef`:\n\n\
         ```yaml\nspec:\n  jobTargetRef: …\n  pollingInterval: 10\n  triggers: …\n```";
    ForeignField "LH110" Error "foreign-field": "A field belongs to a ScaledObject",
        "Many samples contain it, but a ScaledJob has no such field: it is ignored, or rejected by a strict `kubectl apply`.";
    OutdatedField "LH111" Warning "outdated-field": "A field is outdated or has no effect for one queue",
        "KEDA still accepts it. Follow the help of the finding before a new version rejects the field.";
    NotAString "LH112" Error "not-a-string": "A number or a boolean is used where Kubernetes accepts only strings",
        "Values of `env`, `command`, `args`, ConfigMaps and Secrets must be strings; otherwise Kubernetes rejects the object:\n\n\
         ```yaml\nenv:\n  - name: LEASEHOLD_MAX_MESSAGES\n    value: \"5\"\n```";
    ReferenceNotFound "LH113" Error "reference-not-found": "A name refers to an object that is not in the file",
        "The file has another object that is probably meant, since nothing refers to it or its name is similar. Without the object, KEDA creates no Job, or the pods never start. Correct the name, the kind or the namespace.";
    KeyNotFound "LH114" Error "key-not-found": "A ConfigMap or a Secret does not have this key",
        "The pod never starts, or leasehold does not find its file and exits with code 78. Correct the key or the path, or add it.";
    NotInFile "LH115" Unchecked "not-in-file": "A referenced object is not in the file",
        "The object may contain settings that could not be checked. Render it together with the ScaledJob, or run `leasehold check` in the \
         pod.";

    // 2: what KEDA counts, and how many Jobs it creates.
    NoTrigger "LH201" Error "no-trigger": "No trigger counts an SQS queue",
        "KEDA creates Jobs only for messages that a trigger of type `aws-sqs-queue` counts:\n\n```yaml\ntriggers:\n  - type: aws-sqs-queue\n    \
         metadata:\n      queueURLFromEnv: LEASEHOLD_QUEUE_URL\n      queueLength: \"1\"\n      awsRegion: eu-central-1\n      \
         scaleOnInFlight: \"false\"\n```";
    SeveralTriggers "LH202" Warning "several-triggers": "There is more than one trigger",
        "A pod receives from one queue. Pods that another trigger starts find it empty. Give each queue its own ScaledJob.";
    SharedQueue "LH203" Warning "shared-queue": "Two ScaledJobs count the same queue",
        "Both create a Job for each message, and one of the two pods finds no message. Remove one of them.";
    NoQueueUrl "LH204" Error "no-queue-url": "The trigger does not name a queue",
        "Set `queueURLFromEnv: LEASEHOLD_QUEUE_URL`, so that KEDA and the pods read the same variable, or `queueURL`.";
    QueueUrlForm "LH205" Error "queue-url-form": "KEDA cannot parse the queue URL",
        "KEDA expects `https://HOST/ACCOUNT/NAME`, or a name alone, and creates no Job otherwise.";
    QueueMismatch "LH206" Error "queue-mismatch": "KEDA counts another queue than the pods receive from",
        "KEDA creates pods for messages that they do not receive, or none for the messages that wait. Use \
         `queueURLFromEnv: LEASEHOLD_QUEUE_URL`.";
    EndpointMismatch "LH207" Error "endpoint-mismatch": "KEDA and the pods use different SQS endpoints",
        "One of them uses AWS and the other an emulator. Set both `awsEndpoint` of the trigger and `AWS_ENDPOINT_URL` of the container, \
         or neither.";
    NoAuthentication "LH208" Error "no-authentication": "KEDA has no credentials for the queue",
        "Without them, KEDA cannot read the queue's length. Set a TriggerAuthentication:\n\n```yaml\nauthenticationRef:\n  name: \
         leasehold\n```";
    NoRegion "LH209" Error "no-region": "The trigger does not name a region",
        "KEDA does not read it from the queue URL, and creates no Job without it. Set `awsRegion` to the queue's region.";
    RegionMismatch "LH210" Error "region-mismatch": "The trigger has another region than the queue or the pod",
        "KEDA queries a region that does not have the queue, and creates no Job. Set `awsRegion` to the queue's region.";
    EnvSource "LH211" Error "env-source": "The container that KEDA reads does not set a variable",
        "KEDA reads `…FromEnv` from the container that `envSourceContainerName` names, or from the first one, and creates no Job if \
         the variable is not set there.";
    QueueLength "LH212" Error "queue-length": "KEDA creates one pod for more messages than a pod processes",
        "KEDA creates one Job for `queueLength` messages; the default is 5. A pod processes `--max-messages` messages, and the others wait. Set both \
         to the same number.";
    QueueLengthZero "LH213" Error "queue-length-zero": "With this queueLength KEDA never creates a Job",
        "KEDA divides by it, and still reports the ScaledJob as healthy. Set it to \"1\", or to `--max-messages`.";
    UnreadableValue "LH214" Error "unreadable-value": "KEDA cannot parse a value of the trigger",
        "Numbers are decimal integers, and booleans are \"true\" or \"false\" in lower case. Otherwise KEDA uses the default, or creates \
         no Job at all.";
    ActivationThreshold "LH215" Warning "activation-threshold": "A few messages alone never start a Job",
        "Up to `activationQueueLength` messages wait until more arrive. Remove it.";
    DelayedMessages "LH216" Warning "delayed-messages": "KEDA counts delayed messages",
        "A delayed message cannot be received yet: at each poll, KEDA creates a pod that finds no message. Remove `scaleOnDelayed`.";
    InFlightCounted "LH217" Error "in-flight-counted": "KEDA counts messages in flight, and creates another Job for them",
        "Strategy accurate does not subtract running Jobs, so with `scaleOnInFlight` \"true\", the default, each poll creates a Job for \
         each message that is being processed. Set it to \"false\".";
    InFlightNotCounted "LH218" Error "in-flight-not-counted": "KEDA does not count messages in flight, but subtracts running Jobs",
        "The default strategy subtracts running Jobs from the count. Since messages in flight are not in the count, new messages wait until running Jobs end. \
         Use strategy accurate with `scaleOnInFlight: \"false\"`.";
    EagerStrategy "LH219" Error "eager-strategy": "Strategy eager creates Jobs for messages in flight",
        "Use strategy accurate with `scaleOnInFlight: \"false\"` and `pendingPodConditions: [ContainersReady]`.";
    CustomStrategy "LH220" Unchecked "custom-strategy": "The effect of strategy custom depends on its numbers",
        "Strategy accurate with `scaleOnInFlight: \"false\"` creates one Job per message.";
    DefaultStrategy "LH221" Warning "default-strategy": "Some KEDA versions refuse strategy \"default\"",
        "KEDA 2.20.0 and 2.20.1 reject the value \"default\", although it is the default. Remove the field.";
    RolloutImmediate "LH222" Error "rollout-immediate": "An edit of the ScaledJob stops every running pod",
        "With rollout strategy immediate, the default, KEDA deletes the running Jobs when the object changes, and each of their messages loses an attempt:\n\n```yaml\nspec:\n  rollout:\n    strategy: gradual\n```";
    Paused "LH223" Warning "paused": "The ScaledJob is paused",
        "KEDA creates no Job while the annotation `autoscaling.keda.sh/paused` is set. Remove it to process messages.";
    IdleJobs "LH224" Warning "idle-jobs": "Jobs run without messages",
        "`minReplicaCount` Jobs are always running. leasehold exits when the queue is empty, so they start again at every poll. Set it \
         to 0.";
    NoRoom "LH225" Error "no-room": "maxReplicaCount leaves no Job for messages",
        "`minReplicaCount` Jobs use all of `maxReplicaCount`, so no message ever starts one. Set minReplicaCount to 0.";
    NoPendingCondition "LH226" Warning "no-pending-condition": "KEDA creates a second pod before the first one has received",
        "Strategy accurate counts pending Jobs by `pendingPodConditions`. Without them a Job is running as soon as it starts, although \
         its message still waits in the queue:\n\n```yaml\nscalingStrategy:\n  strategy: accurate\n  pendingPodConditions: \
         [ContainersReady]\n```";
    UnknownCondition "LH227" Error "unknown-condition": "Kubernetes never sets this pod condition",
        "KEDA counts a pod as pending until all `pendingPodConditions` are true. If a condition is never true, for example because it is misspelled or in lower case, every running Job is pending, and KEDA creates no Job for the next message.";
    ReadyCondition "LH228" Warning "ready-condition": "After the loss of a node KEDA counts its pods as pending",
        "Kubernetes sets only `Ready` to False when a node is lost, and `ContainersReady` does not change. With `Ready`, KEDA creates no Job for the messages of these pods until the Node object is removed. Use `[ContainersReady]`.";
    ConditionUnseen "LH229" Unchecked "condition-unseen": "Something else sets this pod condition",
        "Kubernetes does not set a readiness gate; another controller must. Use `[ContainersReady]`, which Kubernetes sets.";
    NoReadinessProbe "LH230" Warning "no-readiness-probe": "A pod is ready before it has received",
        "Without a readinessProbe the condition is true as soon as the container runs, so KEDA creates another Job for the same message:\
         \n\n```yaml\nreadinessProbe:\n  httpGet: {path: /readyz, port: 9464}\n  periodSeconds: 1\n```";
    OldKeda "LH231" Warning "old-keda": "KEDA before 2.19 creates too many Jobs near maxReplicaCount",
        "Before 2.19 strategy accurate ignored pending Jobs when the count came near `maxReplicaCount` (kedacore/keda#7329): it created pods that found no message. Update KEDA. The version comes from the file given to `--crd`.";

    // 3: the pod and the kubelet.
    RestartPolicy "LH301" Error "restart-policy": "Kubernetes restarts the container",
        "A restarted container receives another message, or finds no message and completes the Job although the work failed. KEDA sets OnFailure if the pod does not set Never; the container's restartPolicy is another field:\n\n```yaml\njobTargetRef:\n  \
         template:\n    spec:\n      restartPolicy: Never\n```";
    JobRetries "LH302" Warning "job-retries": "The Job retries, although SQS does",
        "A retry by the Job is a new pod, which receives another message than the failed one. SQS retries the failed message already. Set `backoffLimit: 0`.";
    SeveralPods "LH303" Warning "several-pods": "A Job has more than one pod",
        "KEDA counts Jobs, not pods: the other pods find no message. Set parallelism and completions to 1. To process several messages in one \
         pod use `--concurrency` and `--max-messages`.";
    NoPod "LH304" Error "no-pod": "The Jobs never start a pod",
        "A suspended Job, a Job with parallelism or completions 0 and a pod with scheduling gates do not start, and KEDA counts them as \
         pending. To pause, annotate the ScaledJob with `autoscaling.keda.sh/paused: \"true\"`.";
    ManagedElsewhere "LH305" Unchecked "managed-elsewhere": "Another controller manages the Job",
        "Kubernetes does not start pods of a Job with `managedBy`. Remove it, or make sure that the other controller starts them.";
    SecondContainer "LH306" Warning "second-container": "A second container can keep the Job from completing",
        "A Job completes when all its containers have exited. Run helpers as native sidecars, which Kubernetes stops after the main container:\n\n\
         ```yaml\ninitContainers:\n  - name: proxy\n    restartPolicy: Always\n```";
    GraceTooShort "LH307" Error "grace-too-short": "The kubelet sends SIGKILL before the shutdown is complete",
        "`LEASEHOLD_TERMINATION_GRACE` sets how long the graceful shutdown may take. If the pod's terminationGracePeriodSeconds (default 30) is \
         shorter, the message is not released, and is visible again only when its visibility timeout ends. Set both to the same time.";
    GraceUnused "LH308" Warning "grace-unused": "The shutdown does not use the pod's grace period",
        "The command could have more time to exit. Set `LEASEHOLD_TERMINATION_GRACE` to the pod's terminationGracePeriodSeconds.";
    DeadlineTooShort "LH309" Error "deadline-too-short": "activeDeadlineSeconds is shorter than the work may take",
        "Kubernetes stops the pod in the middle of its work. `--max-duration` limits the work already: remove the deadline or raise it.";
    WorkDirUnusable "LH310" Error "work-dir-unusable": "leasehold cannot write to its work directory",
        "Every pod exits with code 78. Mount an emptyDir, and set `LEASEHOLD_WORK_DIR` to its mountPath.";
    WorkDirLimit "LH311" Warning "work-dir-limit": "The work directory may exceed the sizeLimit of its volume",
        "Kubernetes evicts a pod whose emptyDir exceeds its sizeLimit. Set `LEASEHOLD_WORK_DIR_LIMIT` to the sizeLimit, so that leasehold does not download an object that does not fit.";
    KillingProbe "LH312" Warning "killing-probe": "A failed probe kills the work",
        "When a livenessProbe or a startupProbe fails, the kubelet kills the container, and the message loses an attempt. Remove it: \
         `--max-duration` and `--stall-timeout` stop a command that hangs.";
    PreStop "LH313" Warning "pre-stop": "A preStop hook uses up the grace period",
        "The kubelet runs it before SIGTERM, within terminationGracePeriodSeconds. Remove it, or lower `LEASEHOLD_TERMINATION_GRACE` by \
         its duration.";
    NeverReady "LH314" Error "never-ready": "The readinessProbe never succeeds",
        "Nothing answers the probe, so KEDA counts the pod as pending as long as it runs. leasehold answers `/readyz` over \
         HTTP at `LEASEHOLD_LISTEN`, for example 0.0.0.0:9464.";
    ReadyTooEarly "LH315" Warning "ready-too-early": "The readinessProbe succeeds before a message is held",
        "Only `/readyz` shows whether a message is held. With another probe, KEDA creates another Job for the message that this pod is about to \
         receive.";
    ReadyLate "LH316" Warning "ready-late": "The readinessProbe is slow",
        "Until the probe succeeds, the pod counts as pending, and the next message waits. Probe every second: `periodSeconds: 1`.";
    ReadinessUnseen "LH317" Unchecked "readiness-unseen": "It is unknown whether the readinessProbe tests that a message is held",
        "The probe runs a program, and the manifest does not show what it tests. Use httpGet on `/readyz` instead.";
    TerminationMessage "LH318" Warning "termination-message": "Kubernetes reads the termination message from another file",
        "leasehold writes the reason of a failure to `LEASEHOLD_TERMINATION_LOG`, but `kubectl describe pod` shows the file at terminationMessagePath. Remove both settings, or set both to one file.";
    PodRegion "LH319" Error "pod-region": "The pod signs requests for another region than the queue's",
        "SQS refuses every request. Set `AWS_REGION` to the region in the queue URL.";
    NoMemoryLimit "LH320" Error "no-memory-limit": "`--memory-guard` is set, but the container has no memory limit",
        "The guard is a share of the limit, so each pod exits with 78. Set `resources.limits.memory`.";
    ProgramMissing "LH321" Error "program-missing": "leasehold is not where the container starts it",
        "The pod cannot start its command. An init container copies leasehold into an emptyDir, and the container must mount the volume \
         and name the file:\n\n\
         ```yaml\ninitContainers:\n  - name: install\n    image: leasehold:0.1.0\n    args: [install, /opt/leasehold]\n```";
    UndeclaredVolume "LH322" Error "undeclared-volume": "A container mounts a volume that the pod does not have",
        "Kubernetes rejects the pod, so no Job starts. Add the volume to `spec.volumes`, or correct its name.";
    StopSignal "LH323" Error "stop-signal": "The pod's stop signal starts no graceful shutdown",
        "leasehold shuts down on SIGTERM, SIGINT, SIGQUIT and SIGHUP. SIGKILL ends it at once, and after any other signal the kubelet sends SIGKILL at the end of the grace period: the message is not released. Remove `lifecycle.stopSignal`; if the image has another `STOPSIGNAL`, set it to SIGTERM.";

    // 4: how a container starts leasehold.
    LeaseholdNotStarted "LH401" Error "leasehold-not-started": "The container starts another program",
        "No message is received, and KEDA creates such a pod at every poll:\n\n```yaml\ncommand: [leasehold, run, --, python3, \
         process.py]\n```";
    LeaseholdNotFound "LH402" Unchecked "leasehold-not-found": "No container seems to run leasehold",
        "No container has a leasehold command or a LEASEHOLD_ variable, so no settings were checked.";
    StartUnseen "LH403" Unchecked "start-unseen": "It is unknown whether the container starts leasehold",
        "It depends on the image's entrypoint, a script or another program. Set command in the manifest, or make sure that the script ends with \
         `exec leasehold run …`.";
    SignalsLost "LH404" Error "signals-lost": "SIGTERM does not reach leasehold",
        "A shell keeps running as the parent of leasehold and does not pass signals on: the pod ends with SIGKILL, and the message is visible again only when its visibility timeout ends. It is a warning where some shells replace themselves. Write `exec leasehold run …` as the last command.";
    SignalsUnseen "LH405" Unchecked "signals-unseen": "It is unknown whether SIGTERM reaches leasehold",
        "Another program or a shell with a trap starts leasehold. It must pass SIGTERM on, or start leasehold with exec.";
    NoCommand "LH406" Error "no-command": "No command follows `run --`",
        "Every pod exits with 78. Where a container sets `command`, Kubernetes ignores the CMD of the image: write the program after `--`.";
    NoServer "LH407" Error "no-server": "`--handler` has no server",
        "Requests go to an address in the pod. Either the command after `--` starts the server, or a native sidecar runs it: an init \
         container with `restartPolicy: Always`.";

    // 5: the queue and its dead-letter queue (DLQ).
    QueueNotFound "LH501" Error "queue-not-found": "The queue does not exist",
        "SQS has no queue of this name in this account and region. Correct `--queue-url`, or use the credentials of the \
         queue's account.";
    QueueUnseen "LH502" Unchecked "queue-unseen": "The attributes of a queue could not be read",
        "Allow sqs:GetQueueAttributes on the queue and on the DLQ. Without it leasehold does not know which receive is the last.";
    NoDeadLetterQueue "LH503" Error "no-dead-letter-queue": "The queue has no dead-letter queue",
        "leasehold never deletes a failed message. Without a DLQ a poison message is retried until it expires, and is lost. Set a redrive \
         policy with maxReceiveCount 5.";
    FewReceives "LH504" Warning "few-receives": "maxReceiveCount is low",
        "Every pod stop and every crash also uses up one receive, so a good message may reach the DLQ. Set it to 5, on spot nodes to 10.";
    DeadLetterQueueNotFound "LH505" Error "dead-letter-queue-not-found": "The dead-letter queue does not exist",
        "SQS cannot move the messages that reached maxReceiveCount. Create it, or correct deadLetterTargetArn.";
    DeadLetterRetention "LH506" Error "dead-letter-retention": "The dead-letter queue has a shorter retention than the queue",
        "For a standard queue, the retention counts from the first send, even after the move to the DLQ: a dead letter may expire before anyone reads it. Set it to 14 days (1209600).";
    DeadLetterRetentionEqual "LH507" Warning "dead-letter-retention-equal": "The dead-letter queue has the same retention as the queue",
        "Both may have the default of 4 days. The retention counts from the first send, so the time in the queue shortens the time in the DLQ. Set it to 14 days (1209600).";
    RedriveNotAllowed "LH508" Error "redrive-not-allowed": "The dead-letter queue does not accept this queue",
        "Its RedriveAllowPolicy denies all sources or lists others. Add the queue's ARN to sourceQueueArns.";
    RetentionBelowAttempt "LH509" Error "retention-below-attempt": "A message expires during its first attempt",
        "The retention is shorter than the work, the shutdown and the backoff of one attempt. Raise MessageRetentionPeriod, or lower \
         `--max-duration` and `--retry-max`.";
    RetentionBelowAttempts "LH510" Warning "retention-below-attempts": "A message expires before it reaches the dead-letter queue",
        "All attempts together may take longer than the retention. Raise it, or lower `--max-duration`, `--retry-max` or \
         maxReceiveCount.";
    AwsManagedKey "LH511" Error "aws-managed-key": "S3 cannot send to a queue that is encrypted with alias/aws/sqs",
        "The policy of this AWS managed key cannot be changed, so no event arrives. Use SSE-SQS, or your own key with a policy that allows s3.amazonaws.com kms:GenerateDataKey and kms:Decrypt.";
    KmsKeyUnseen "LH512" Unchecked "kms-key-unseen": "It is unknown whether a KMS key may be used",
        "The pod's role needs kms:Decrypt to read and kms:GenerateDataKey to write, the key's policy must allow it, and S3 needs both to \
         send to an encrypted queue.";
    QueuePolicy "LH513" Error "queue-policy": "S3 may not send to the queue",
        "S3 tests it when the notification is created, but reports nothing when the policy changes later. Allow s3.amazonaws.com sqs:SendMessage \
         with a condition on aws:SourceArn.";
    QueuePolicyUnseen "LH514" Unchecked "queue-policy-unseen": "It is unknown whether S3 may send to the queue",
        "The policy has conditions that depend on more than the queue and the bucket.";
    QueuePermission "LH515" Error "queue-permission": "The role lacks a permission on the queue",
        "A run needs sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility and sqs:GetQueueAttributes. Allow them in the \
         pod's role.";
    QueueUnanswered "LH516" Error "queue-unanswered": "SQS does not answer as expected",
        "The answer neither confirms nor denies the permission. Check the endpoint, the network and the credentials.";
    PermissionUntried "LH517" Unchecked "permission-untried": "A permission was not tested, since the test would have side effects",
        "`check` receives no message and deletes no object. The pod's role must allow the action that the finding names.";

    // 6: the buckets.
    BucketNotFound "LH601" Error "bucket-not-found": "A bucket does not exist",
        "A flag names a bucket that S3 does not have. Create it, or correct the name.";
    BucketsNotNamed "LH602" Unchecked "buckets-not-named": "The source buckets are not known",
        "Set `--buckets`: then their notifications and the permission to read are checked.";
    BucketSilent "LH603" Error "bucket-silent": "The bucket does not notify the queue",
        "New objects do not become messages. Add an event notification to the queue.";
    EventsMismatch "LH604" Error "events-mismatch": "`--events` includes none of the bucket's events",
        "Messages about other events are deleted without processing. Make the notification's events and `--events` agree.";
    NotificationsUnseen "LH605" Unchecked "notifications-unseen": "The bucket's notifications could not be read",
        "Allow s3:GetBucketNotification to the identity that runs `check`; the pod does not need it. `check` does not follow EventBridge and SNS: check that their rule or subscription reaches the queue.";
    ReadPermission "LH606" Warning "read-permission": "The role may not read objects",
        "Allow s3:GetObject, and s3:ListBucket, without which S3 answers 403 for a missing object.";
    WritePermission "LH607" Error "write-permission": "The role lacks a permission where a run writes",
        "Allow the action in the pod's role. It is a warning if a run works without it.";
    PermissionUnseen "LH608" Unchecked "permission-unseen": "It is unknown whether the role has a permission",
        "The answer of S3 neither confirms nor denies it. Without s3:ListBucket, S3 answers 403 for a missing object, too.";
    WritesBecomeWork "LH609" Error "writes-become-work": "Files that a run writes become messages",
        "Each job then creates another one, without end. Write to another bucket or prefix, or narrow the notification's prefix. It is a warning if it depends on the names of the files.";
    WritesStartPods "LH610" Warning "writes-start-pods": "Files that a run writes start pods that find no work",
        "The bucket notifies the queue of them, but such events are not in `--events`. Narrow the notification's prefix or events.";
    ConditionsIgnored "LH611" Error "conditions-ignored": "The store ignores conditional writes",
        "The records of `--idempotency` rely on If-None-Match and If-Match. Without them, two pods may do the same work. Use a store that \
         supports both.";
    ConditionsUntried "LH612" Unchecked "conditions-untried": "Conditional writes were not tested",
        "The test record could become a message, or could not be written. The first record of a run tests them, too.";
}
