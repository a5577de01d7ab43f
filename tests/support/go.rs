//! Programs that Go's ordinary client installs on first use.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Why a program is not here.
pub(crate) type Missing = String;

/// Installs `module` as `name` into a directory below the build's own for temporary files, unless it
/// is there; `variable` names a program to use instead. Takes minutes.
pub(crate) fn program(
    module: &str,
    directory: &str,
    name: &str,
    variable: &str,
) -> Result<PathBuf, Missing> {
    if let Some(program) = std::env::var_os(variable) {
        return Ok(program.into());
    }
    let base = Path::new(option_env!("CARGO_TARGET_TMPDIR").unwrap_or("target/tmp"));
    let directory = std::path::absolute(base.join(directory)).map_err(|error| error.to_string())?;
    let program = directory.join(name);
    if program.exists() {
        return Ok(program);
    }
    eprintln!("installing {module} (a few minutes, once)");
    let install = Command::new("go").args(["install", module]).env("GOBIN", &directory).status();
    match install {
        Ok(status) if status.success() => Ok(program),
        Ok(status) => Err(format!("go install {module} ended with {status}")),
        Err(error) => Err(format!("Go is not here ({error})")),
    }
}
