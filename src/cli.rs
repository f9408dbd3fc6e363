//! Floor 9: arguments become a verb, and a verb an exit code.

mod check;
mod dev;
mod display;
mod effective;
mod explain;
mod health;
mod inspect;
mod routes;
mod run;
mod signals;
mod token_diagnostics;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::config::{self, Config, Environment, Faults, Format};
use crate::observe::metrics::{COMMIT, RUSTC, VERSION};

/// An API gateway: the single entry point in front of microservices.
#[derive(Debug, Parser)]
#[command(name = "northgate", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the gateway (the default)
    Run {
        #[command(flatten)]
        file: File,
        /// Take over the file whenever it changes
        #[arg(long)]
        watch: bool,
        /// Start on the addresses of a gateway that still runs, to stop that one next
        #[arg(long)]
        handover: bool,
    },
    /// Say everything that is wrong with a configuration
    Check {
        #[command(flatten)]
        file: File,
        /// How faults are written
        #[arg(long, value_enum, default_value_t = Style::Text)]
        format: Style,
        /// Let warnings fail, too
        #[arg(long)]
        strict: bool,
    },
    /// Show the routes in the order in which a request is compared with them
    Routes {
        #[command(flatten)]
        file: File,
    },
    /// Say which route a request would take, why, and what would happen on it
    #[command(allow_missing_positional = true)]
    Explain {
        #[command(flatten)]
        asked: explain::ExplainArgs,
        #[command(flatten)]
        file: File,
    },
    /// Show the configuration as it is understood, secrets as ***
    Config {
        #[command(flatten)]
        file: File,
    },
    /// Look into a token
    #[command(subcommand)]
    Token(Token),
    /// Start the whole system on this machine: gateway, authorization server, sample services
    Dev {
        #[command(flatten)]
        file: File,
        /// Move every port by this much
        #[arg(long, default_value_t = 0, value_name = "N")]
        port_offset: u16,
    },
    /// Ask a running gateway whether it lives
    Health {
        /// Where its operator's listener answers
        #[arg(long, default_value = "http://127.0.0.1:9901/livez")]
        url: String,
    },
    /// Make a key for sessions' cookies
    Keygen,
    /// Say which version this is
    Version {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Decode a token, hold it against the configured issuers, say what fails
    Inspect {
        /// The token
        token: Secret<String>,
        #[command(flatten)]
        file: File,
    },
}

#[derive(Debug, clap::Args)]
struct File {
    /// The configuration
    #[arg(short, long, default_value = "gateway.yaml", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Style {
    /// For people: the line, a caret, and what to write instead
    Text,
    /// For programs
    Json,
    /// For GitHub's annotations
    Github,
}

/// The exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits), so that a
/// service manager does not try again.
const EX_CONFIG: u8 = 78;
/// The exit code for a command line that makes no sense, as `clap` has it.
const EX_USAGE: u8 = 2;

/// Does what the arguments say.
pub fn run() -> ExitCode {
    match Arguments::parse().verb.unwrap_or(Verb::Run {
        file: File { config: "gateway.yaml".into() },
        watch: false,
        handover: false,
    }) {
        Verb::Run { file, watch, handover } => run::run(&file.config, watch, handover),
        Verb::Check { file, format, strict } => check::check(&file.config, format.into(), strict),
        Verb::Routes { file } => routes::routes(&file.config),
        Verb::Explain { asked, file } => explain::explain(asked, &file.config),
        Verb::Config { file } => effective::config(&file.config),
        Verb::Token(Token::Inspect { token, file }) => {
            inspect::inspect(token.expose(), &file.config)
        }
        Verb::Dev { file, port_offset } => dev::dev(&file.config, port_offset),
        Verb::Health { url } => health::health(&url),
        Verb::Keygen => keygen(),
        Verb::Version { json } => version(json),
    }
}

/// Loads a configuration; what is wrong goes to standard error.
fn load(file: &Path, environment: &Environment) -> Result<Config, ExitCode> {
    match config::load(file, environment, Clock::system().now()) {
        Ok((config, warnings)) => {
            tell(&warnings);
            Ok(config)
        }
        Err(faults) => {
            tell(&faults);
            Err(ExitCode::from(EX_CONFIG))
        }
    }
}

/// Loads a configuration for a question about it.
fn read(file: &Path) -> Result<Config, ExitCode> {
    read_in(file, &Environment::from_process())
}

/// Loads a configuration without a word about its warnings: they are for `check` to say.
fn read_in(file: &Path, environment: &Environment) -> Result<Config, ExitCode> {
    match config::load(file, environment, Clock::system().now()) {
        Ok((config, _)) => Ok(config),
        Err(faults) => {
            tell(&faults);
            Err(ExitCode::from(EX_CONFIG))
        }
    }
}

#[expect(clippy::print_stderr, reason = "before there is a log")]
fn tell(faults: &Faults) {
    if !faults.is_empty() {
        eprint!("{}", faults.render(Format::Text));
    }
}

fn fail(story: &str) -> ExitCode {
    complain(1, story)
}

#[expect(clippy::print_stderr, reason = "what a person at a terminal is to read")]
fn complain(code: u8, story: &str) -> ExitCode {
    eprintln!("northgate: {story}");
    ExitCode::from(code)
}

#[expect(clippy::print_stdout, reason = "the key is the answer")]
fn keygen() -> ExitCode {
    use base64::Engine as _;
    let mut key = [0; 32];
    if aws_lc_rs::rand::fill(&mut key).is_err() {
        return fail("the system gives no randomness");
    }
    println!("{}", base64::engine::general_purpose::STANDARD.encode(key));
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "the version is the answer")]
fn version(json: bool) -> ExitCode {
    if json {
        println!("{}", serde_json::json!({ "version": VERSION, "commit": COMMIT, "rustc": RUSTC }));
    } else {
        println!("northgate {VERSION}");
    }
    ExitCode::SUCCESS
}

impl From<Style> for Format {
    fn from(style: Style) -> Self {
        match style {
            Style::Text => Self::Text,
            Style::Json => Self::Json,
            Style::Github => Self::Github,
        }
    }
}
