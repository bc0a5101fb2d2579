//! The settings of a program that embeds leasehold without a command line: values from its code.

#[cfg(feature = "testing")]
use super::LocalSettings;
#[cfg(feature = "aws")]
use super::RunSettings;
use super::error::{SettingError, rename_flags};
use super::given::{self, Refused, Settings, Values};
#[cfg(feature = "testing")]
use super::no_effect::LOCAL_ONLY;
use super::no_effect::{self, BATCHES_ONLY, COMMAND_ONLY, Group, PROGRAM_ONLY, instead};
use super::pod::WorkSettings;
use super::values::Handler;

/// In place of the command.
pub const HANDLER: &str = "the handler";

/// How many messages a batch handler takes at most, if nothing else is set.
const DEFAULT_BATCH: usize = 10;

/// The settings of `run` with these values, without a command line and without `LEASEHOLD_`
/// variables.
#[cfg(feature = "aws")]
pub fn run_settings(values: &Values, takes_batches: bool) -> Result<RunSettings, Refused> {
    if !has(values, "queue-url") {
        return Err(SettingError::NoQueue.into());
    }
    let mut settings: RunSettings = read(values, &[&COMMAND_ONLY, &PROGRAM_ONLY], takes_batches)?;
    let size = default_batch(settings.concurrency, Some(settings.work.max_messages));
    prepare(&mut settings.work, values, takes_batches.then_some(size))?;
    Ok(settings)
}

/// How many messages a batch handler takes at most, if nothing is set. A run of few messages needs
/// no larger batches.
#[cfg(any(feature = "aws", feature = "cli"))]
pub fn default_batch(concurrency: usize, max_messages: Option<u32>) -> usize {
    let most = max_messages.and_then(|most| most.try_into().ok()).unwrap_or(usize::MAX);
    DEFAULT_BATCH.min(most / concurrency.max(1)).max(1)
}

/// The settings of `local` with these values; its folder is not used.
#[cfg(feature = "testing")]
pub fn local_settings(values: &Values, takes_batches: bool) -> Result<LocalSettings, Refused> {
    let refused: [&[Group]; 3] = [&COMMAND_ONLY, &PROGRAM_ONLY, &LOCAL_ONLY];
    let mut settings: LocalSettings = read(values, &refused, takes_batches)?;
    prepare(&mut settings.work, values, takes_batches.then_some(DEFAULT_BATCH))?;
    Ok(settings)
}

/// Reads settings, and refuses those of these groups.
fn read<S: Settings>(
    values: &Values,
    refused: &[&[Group]],
    takes_batches: bool,
) -> Result<S, Refused> {
    let of_batches: &[Group] = if takes_batches { &[] } else { &BATCHES_ONLY };
    for groups in refused.iter().copied().chain([of_batches]) {
        no_effect::refuse(groups, flags(values))?;
    }
    given::read(values)
}

/// The names of the settings.
pub fn flags(values: &Values) -> impl Iterator<Item = &'static str> {
    values.iter().map(|(flag, _)| *flag)
}

pub fn has(values: &Values, flag: &str) -> bool {
    flags(values).any(|name| name == flag)
}

/// A handler does the work: of one job, or of a batch with this size unless another one is set.
fn prepare(
    work: &mut WorkSettings,
    values: &Values,
    default_batch: Option<usize>,
) -> Result<(), Refused> {
    no_effect::refuse_command_only(work)?;
    work.task.command = vec![HANDLER.into()];
    if let Some(size) = default_batch {
        work.handler = Handler::Batches;
        if !has(values, "batch-size") {
            work.batch_size = size;
        }
    }
    Ok(())
}

/// A complaint with the names that code uses: `max_duration` instead of `--max-duration`.
pub fn as_code(complaint: &str) -> String {
    #[cfg(feature = "aws")]
    let names = given::names::<RunSettings>();
    #[cfg(not(feature = "aws"))]
    let names = Vec::new();
    #[cfg(feature = "testing")]
    let names = [names, given::names::<LocalSettings>()].concat();
    // A build may lack some of the latter.
    let is_ours = |flag: &str| names.contains(&flag) || instead(&PROGRAM_ONLY, flag).is_some();
    // Values are in quotes.
    rename_flags(complaint, &['('], |flag| is_ours(flag).then(|| given::in_code(flag)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUEUE: (&str, &str) = ("queue-url", "https://sqs.us-east-1.amazonaws.com/1/q");

    #[cfg(feature = "aws")]
    #[test]
    fn values_from_code_have_the_same_defaults_and_complaints() {
        let values = |more: &[(&'static str, &str)]| -> Values {
            [&[QUEUE], more]
                .concat()
                .into_iter()
                .map(|(flag, value)| (flag, value.into()))
                .collect()
        };
        let settings =
            run_settings(&values(&[("max-duration", "2h"), ("accept-raw", "true")]), false)
                .unwrap();
        assert_eq!(settings.work.task.visibility_timeout, Some(Duration::from_mins(2)));
        assert_eq!(settings.work.task.max_duration, Some(Duration::from_hours(2)));
        assert!(settings.work.accept_raw);
        for (flag, value, complaint) in [
            ("max-duration", "2 fortnights", "max_duration"),
            ("max-durations", "2h", "max_durations"),
            ("accept-raw", "yes", "'yes' for accept_raw: it must be true or false"),
            ("listen", ":9464", "listen"),
            ("permanent-exit-codes", "7", "permanent_exit_codes has no effect here"),
            ("input", "stdin", "input stdin has no effect here"),
            ("batch-size", "2", "batch_size has no effect here: the handler takes one job"),
        ] {
            let refused = run_settings(&values(&[(flag, value)]), false).unwrap_err();
            assert_eq!(refused.setting.as_deref(), Some(flag));
            let error = as_code(&refused.text);
            assert!(error.contains(complaint) && !error.contains("--"), "{error}");
        }
    }

    /// Texts of every form that a setting has.
    const TEXTS: [&str; 24] = [
        "",
        "0",
        "1",
        "11",
        "65,66",
        "300",
        "-1",
        "2h30m",
        "2 fortnights",
        "500Mi",
        "80%",
        "true",
        "requester",
        "name",
        "a=b,c=d",
        "ObjectCreated:*",
        "lambda",
        "http://127.0.0.1:8080/work",
        ":9464",
        "/opt/input/",
        "s3://bucket/prefix",
        "s3://bucket/prefix=/mnt",
        "uri=/s3Uri",
        "123456789012",
    ];

    /// The same attributes declare a setting for both. Each flag is read with each text, and with
    /// these settings: some flags have an effect only with another one.
    #[cfg(feature = "cli")]
    fn is_read_alike<S: Settings + clap::Args + std::fmt::Debug>(
        always: &[(&'static str, &str)],
        words: &[&str],
        complete: impl Fn(&mut S),
    ) {
        use clap::builder::PossibleValue;
        use clap::{ArgAction, Command};

        let command = S::augment_args(Command::new("action"));
        let command = command.no_binary_name(true).args_override_self(true);
        let (mut accepted, mut refused) = (0, 0);
        for arg in command.get_arguments() {
            let Some(flag) = arg.get_long().filter(|flag| *flag != "help") else { continue };
            let flag: &'static str = flag.to_owned().leak();
            let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
            let choices = arg.get_possible_values();
            let choices = choices.iter().map(PossibleValue::get_name);
            for text in TEXTS.into_iter().chain(choices) {
                let values = always.iter().copied().chain([(flag, text)]);
                let as_words = values.clone().map(|(name, text)| match text {
                    "true" if is_switch && name == flag => format!("--{name}"),
                    text => format!("--{name}={text}"),
                });
                if is_switch && text != "true" {
                    continue;
                }
                let words = words.iter().map(|word| (*word).to_owned()).chain(as_words);
                let words: Vec<_> = words.chain(["--".into(), HANDLER.into()]).collect();
                let by_clap = command.clone().try_get_matches_from(&words);
                let by_clap = by_clap.and_then(|matches| S::from_arg_matches(&matches));
                let values: Values = values.map(|(name, text)| (name, text.into())).collect();
                let in_code = given::read::<S>(&values).map(|mut settings| {
                    complete(&mut settings);
                    settings
                });
                match (by_clap, in_code) {
                    (Ok(by_clap), Ok(in_code)) => {
                        accepted += 1;
                        assert_eq!(format!("{by_clap:?}"), format!("{in_code:?}"), "{words:?}");
                    }
                    (Err(_), Err(complaint)) => {
                        refused += 1;
                        assert!(complaint.text.contains(&format!("--{flag}")), "{complaint}");
                        assert_eq!(complaint.setting.as_deref(), Some(flag), "{complaint}");
                    }
                    (by_clap, in_code) => panic!("{words:?}: {by_clap:?} and {in_code:?}"),
                }
            }
        }
        assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
    }

    #[cfg(all(feature = "aws", feature = "cli"))]
    #[test]
    fn code_and_the_command_line_read_each_setting_of_run_alike() {
        let always = [QUEUE, ("idempotency", "s3://records/x"), ("output-sse", "aws:kms")];
        is_read_alike(&always, &[], |settings: &mut RunSettings| {
            settings.work.task.command = vec![HANDLER.into()];
        });
    }

    #[cfg(feature = "cli")]
    #[test]
    fn code_and_the_command_line_read_each_setting_of_local_alike() {
        is_read_alike(&[], &["inbox"], |settings: &mut super::super::LocalSettings| {
            settings.inbox = "inbox".into();
            settings.work.task.command = vec![HANDLER.into()];
        });
    }

    #[cfg(feature = "aws")]
    #[test]
    fn only_names_of_settings_are_written_as_in_code() {
        for (complaint, in_code) in [
            ("--work-dir /srv/jobs--tmp-1: it is full", "work_dir /srv/jobs--tmp-1: it is full"),
            ("set --max-duration, or (--wait)", "set max_duration, or (wait)"),
            ("invalid value '--wait' for --stop-grace", "invalid value '--wait' for stop_grace"),
            (
                "the folder /a --b/--wait -- and --no-setting",
                "the folder /a --b/--wait -- and --no-setting",
            ),
        ] {
            assert_eq!(as_code(complaint), in_code);
        }
    }

    #[test]
    fn settings_that_belong_together_are_given_together() {
        let refused = |values: &[(&'static str, &str)]| {
            let values: Values =
                values.iter().map(|(flag, text)| (*flag, (*text).into())).collect();
            as_code(&given::read::<super::super::LocalSettings>(&values).unwrap_err().text)
        };
        assert_eq!(
            refused(&[("verbose", "true"), ("quiet", "true")]),
            "verbose cannot be used with quiet: remove one of them"
        );
        let one = [("verbose", "false"), ("quiet", "true")];
        let one: Values = one.map(|(flag, text)| (flag, text.into())).into();
        assert!(given::read::<super::super::LocalSettings>(&one).is_ok_and(|it| it.quiet));
        assert_eq!(refused(&[("work-dir", "")]), "work_dir: the path is empty");
        assert_eq!(
            refused(&[("output", "https://user:s3cr3t@bucket")]),
            "invalid value 'https://[redacted]@bucket' for output"
        );
        assert_eq!(
            refused(&[("max-duratoin", "1h")]),
            "max_duratoin is not a setting here; did you mean max_duration?"
        );
    }
}
