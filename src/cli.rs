//! The `northgate` command line (floor 9): parses arguments, runs one subcommand and returns its exit code.
//!
//! Each subcommand has a file of its own. Exit codes: 0 success, 1 failure, 2 usage, 78 unusable configuration.

mod check;
mod config;
mod dev;
mod display;
mod exit;
mod explain;
mod health;
mod load;
mod output;
mod routes;
mod run;
mod signals;
mod token;
mod token_diagnostics;
mod upgrade;
mod upstream_states;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use self::exit::fail;
use self::output::print;
use crate::base::random::try_random;
use crate::base::secret::Secret;
use crate::config::Format;
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
        /// Reload the configuration file whenever it changes
        #[arg(long)]
        watch: bool,
        /// Start on the addresses of a running gateway, so that it can be stopped afterwards without downtime
        #[arg(long)]
        handover: bool,
    },
    /// Report every fault of a configuration file
    Check {
        #[command(flatten)]
        file: File,
        /// Output format of faults
        #[arg(long, value_enum, default_value_t = Style::Text)]
        format: Style,
        /// Exit with an error if there are warnings
        #[arg(long)]
        strict: bool,
    },
    /// List the routes in matching order
    Routes {
        #[command(flatten)]
        file: File,
    },
    /// Explain which route a request takes, why, and how it is processed
    #[command(allow_missing_positional = true)]
    Explain {
        #[command(flatten)]
        asked: explain::ExplainArgs,
        #[command(flatten)]
        file: File,
    },
    /// Print the effective configuration, with secrets as ***
    Config {
        #[command(flatten)]
        file: File,
    },
    /// Work with tokens
    #[command(subcommand)]
    Token(Token),
    /// Start the whole system on this machine: gateway, authorization server, sample services
    Dev {
        #[command(flatten)]
        file: File,
        /// Add this number to every port
        #[arg(long, default_value_t = 0, value_name = "N")]
        port_offset: u16,
    },
    /// Check the health of a running gateway
    Health {
        /// URL of the health endpoint on the admin listener
        #[arg(long, default_value = "http://127.0.0.1:9901/livez")]
        url: String,
    },
    /// Generate a key for encrypting session cookies (32 random bytes in base64)
    Keygen,
    /// Print the version
    Version {
        /// Print one JSON object with version, commit and compiler
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Decode a token, validate it for each configured issuer and report why it fails
    Inspect {
        /// The token, a JWT or an opaque one
        token: Secret<String>,
        #[command(flatten)]
        file: File,
    },
}

#[derive(Debug, clap::Args)]
struct File {
    /// Path of the configuration file
    #[arg(short, long, default_value = "gateway.yaml", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Style {
    /// For terminals: the line, a caret and the suggested fix
    Text,
    /// One JSON array with an object per fault
    Json,
    /// GitHub Actions annotations
    Github,
}

/// Parses the arguments of the process and runs the subcommand. Without one, runs `northgate run`.
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
        Verb::Config { file } => config::config(&file.config),
        Verb::Token(Token::Inspect { token, file }) => token::inspect(token.expose(), &file.config),
        Verb::Dev { file, port_offset } => dev::dev(&file.config, port_offset),
        Verb::Health { url } => health::health(&url),
        Verb::Keygen => keygen(),
        Verb::Version { json } => version(json),
    }
}

fn keygen() -> ExitCode {
    use base64::Engine as _;
    let Some(key) = try_random::<32>() else {
        return fail("cannot generate a key: the system's random source failed");
    };
    print(base64::engine::general_purpose::STANDARD.encode(key) + "\n");
    ExitCode::SUCCESS
}

fn version(json: bool) -> ExitCode {
    if json {
        let about = serde_json::json!({ "version": VERSION, "commit": COMMIT, "rustc": RUSTC });
        print(format_args!("{about}\n"));
    } else {
        print(format_args!("northgate {VERSION}\n"));
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
