//! The `bulkhead` command: arguments in, an exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead::cli::main()
}
