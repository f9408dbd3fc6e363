//! Programs for Node.js, which `.ci/run` installs into `target/real/npm`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use tempfile::NamedTempFile;

use super::support::{folder, repository};

/// The command that runs `script` of `tests/real/npm`; `None` after saying that `suite` is left out.
pub(crate) fn node(suite: &str, script: &str) -> Option<Command> {
    let modules = folder(suite, "target/real/npm/node_modules")?;
    let installed: PathBuf = modules.parent().expect("a folder in a folder").to_owned();
    // Node looks for modules beside the script, and they are not among the sources. Tests run side by
    // side, and one must not read what another has half written.
    let mut copy = NamedTempFile::new_in(&installed).expect("a file");
    let text = fs::read(repository("tests/real/npm").join(script)).expect("a script");
    copy.write_all(&text).expect("a copy");
    let copy = copy.into_temp_path();
    copy.persist(installed.join(script)).expect("a file in the same folder");
    let mut command = Command::new(installed.join("node_modules/node/bin/node"));
    command.arg(script).current_dir(installed);
    Some(command)
}
