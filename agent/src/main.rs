//! The `bulkhead` command: arguments in, an exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A reader that has seen enough (`bulkhead status | head`) ends us quietly, as it does any other command.
    // SAFETY: no other thread runs yet, and the default action is always valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    bulkhead::cli::main()
}
