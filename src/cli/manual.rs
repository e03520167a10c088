//! What explains the commands: examples in `--help`, the version, shell completions and man pages.

use std::process::ExitCode;

use anyhow::bail;
use clap::builder::StyledStr;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::print;
use crate::config::{self, Setting};

/// The end of `--help` of the commands for a running server.
pub(super) const CLIENT_HELP: &str = "\
The admin token is read from ADMIN_TOKEN in the environment or .env, or from the file specified by ADMIN_TOKEN_FILE.";

/// The release, and the commit that it was built from if that is known.
pub(super) fn version() -> String {
    let release = env!("CARGO_PKG_VERSION");
    match option_env!("VIDEO_INGEST_COMMIT") {
        None | Some("") => release.to_owned(),
        Some(commit) => format!("{release} ({commit})"),
    }
}

/// Adds examples, each with what it does, before the text at the end of `--help`.
pub(super) fn with_examples(command: Command, examples: &[(&str, &str)]) -> Command {
    let examples = examples
        .iter()
        .map(|(what, line)| format!("  # {what}\n  {line}\n"));
    let examples: String = examples.collect();
    let before = |end: Option<&StyledStr>| match end {
        None => format!("Examples:\n{examples}"),
        Some(end) => format!("Examples:\n{examples}\n{end}"),
    };
    let short = before(command.get_after_help());
    let long = command.get_after_long_help().map(|end| before(Some(end)));
    let command = command.after_help(short);
    match long {
        None => command,
        Some(long) => command.after_long_help(long),
    }
}

/// Adds a flag for each setting. `-h` does not list them; `--help` lists those that the command uses.
pub(super) fn with_settings(command: Command, used: &[Setting]) -> Command {
    let is_used = |name: &str| used.iter().any(|setting| setting.name == name);
    let arguments = config::arguments().into_iter().map(|argument| {
        let is_used = is_used(argument.get_id().as_str());
        argument.hide_short_help(true).hide(!is_used)
    });
    let end = command.get_after_help().map(ToString::to_string);
    let secrets = config::secrets_help(used);
    let parts = [end, (!secrets.is_empty()).then_some(secrets)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    command.args(arguments).after_long_help(parts.join("\n\n"))
}

/// The command line of `completions`.
pub(super) fn completions_command() -> Command {
    let command = Command::new("completions")
        .about("Print a shell completion script")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("Shell to generate the script for"),
        );
    let bash = "video-ingest completions bash | sudo tee /etc/bash_completion.d/video-ingest";
    with_examples(
        command,
        &[
            ("bash, with the package bash-completion", bash),
            (
                "zsh, in a folder of fpath",
                "video-ingest completions zsh > ~/.zfunc/_video-ingest",
            ),
            (
                "fish",
                "video-ingest completions fish > ~/.config/fish/completions/video-ingest.fish",
            ),
        ],
    )
}

/// The command line of `man`.
pub(super) fn man_command() -> Command {
    let command = Command::new("man").about("Print a man page").arg(
        Arg::new("command")
            .value_name("COMMAND")
            .num_args(0..)
            .help("Command to describe, such as `videos list` [default: video-ingest itself]"),
    );
    with_examples(
        command,
        &[
            (
                "Read the page of a command",
                "video-ingest man videos list | man -l -",
            ),
            (
                "Install the main page",
                "video-ingest man > ~/.local/share/man/man1/video-ingest.1",
            ),
        ],
    )
}

/// Runs `completions`.
pub(super) fn completions(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some(shell) = matches.get_one::<Shell>("shell") else {
        bail!("SHELL is required.");
    };
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut super::command(), "video-ingest", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `man`.
pub(super) fn man(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let mut command = super::command();
    command.build();
    for name in matches.get_many::<String>("command").into_iter().flatten() {
        let Some(found) = command.find_subcommand(name) else {
            bail!("There is no command `{name}`. Run `video-ingest --help` for a list.");
        };
        command = found.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&String::from_utf8(page)?)?;
    Ok(ExitCode::SUCCESS)
}
