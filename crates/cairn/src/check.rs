//! `cairn check`: validates a configuration as `proxy` would, and prints a summary.

use crate::cli::CheckArgs;
use crate::failure::Failure;
use crate::terminal;
use cairn_router::compile::Compiler;
use cairn_xds::FileSource;
use std::fmt::Write;
use std::process::ExitCode;

/// Errors that are printed at most.
const MAX_SHOWN: usize = 50;

/// Prints the summary, or everything that is wrong.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let (source, config) = FileSource::open(&args.path).map_err(|errors| broken(&errors))?;
    let mut errors = Vec::new();
    let mut warnings = String::new();
    for mesh in &config.meshes {
        match Compiler::new(&mesh.name).compile(mesh.resources()) {
            Ok(compiled) => {
                for warning in compiled.warnings() {
                    // Writing to a String cannot fail.
                    let _ = writeln!(warnings, "warning: mesh {}: {warning}", mesh.name);
                }
            }
            Err(wrong) => errors.extend(
                wrong.iter().map(|error| source.explain(&mesh.name, &error.path, &error.message)),
            ),
        }
    }
    if !errors.is_empty() {
        return Err(broken(&errors));
    }
    terminal::text(cairn_xds::summary(&config));
    terminal::text(warnings);
    Ok(ExitCode::SUCCESS)
}

/// All errors, one per line, each with file, line and field.
pub fn broken(errors: &[impl std::fmt::Display]) -> Failure {
    let mut lines: Vec<String> = errors.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
    if errors.len() > MAX_SHOWN {
        lines.push(format!("{} more errors", errors.len() - MAX_SHOWN));
    }
    let count = match errors.len() {
        1 => "1 error".to_owned(),
        count => format!("{count} errors"),
    };
    Failure::new(format!("{count} in the configuration")).hint(lines.join("\n"))
}
