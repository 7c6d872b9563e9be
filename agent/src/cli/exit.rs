//! Exit codes, all decided here.

use crate::app::Failure;
use std::process::ExitCode;

/// What a command found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Fine, allowed, done.
    Fine,
    /// Findings, denied.
    Findings,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Problem {
    /// The agent didn't start, or ended.
    Agent(Failure),
    /// It couldn't be asked.
    Query(anyhow::Error),
}

impl From<anyhow::Error> for Problem {
    fn from(e: anyhow::Error) -> Self {
        Self::Query(e)
    }
}

/// For `--help`.
pub(super) const HELP: &str = "Exit codes: 0 fine or allowed, 1 findings or denied, 2 couldn't be asked; \
    10 to 19: why the agent doesn't run (bulkhead agent --help).";

/// Says the problem, if there is one, and gives the code.
pub(super) fn code(answer: Result<Answer, Problem>) -> ExitCode {
    if let Err(problem) = &answer {
        match problem {
            Problem::Agent(f) => eprintln!("bulkhead: {f}"),
            Problem::Query(e) => eprintln!("bulkhead: {e:#}"),
        }
    }
    ExitCode::from(number(&answer))
}

const fn number(answer: &Result<Answer, Problem>) -> u8 {
    match answer {
        Ok(Answer::Fine) => 0,
        Ok(Answer::Findings) => 1,
        Err(Problem::Query(_)) => 2,
        Err(Problem::Agent(f)) => match f {
            Failure::Other(_) => 1,
            Failure::NotRoot => 10,
            Failure::NoCgroup2(_) => 11,
            Failure::NoBtf => 12,
            Failure::Capability(_) => 13,
            Failure::Bpffs(_) => 14,
            Failure::AlreadyRunning(_) => 15,
            Failure::Config(_) => 16,
            Failure::NoObject => 17,
            Failure::Load(_) => 18,
            Failure::Attach(_) => 19,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn every_failure_has_a_code_of_its_own_and_one_clear_line() {
        let all = [
            Failure::NotRoot,
            Failure::NoCgroup2(anyhow!("x")),
            Failure::NoBtf,
            Failure::Capability("CAP_BPF".to_owned()),
            Failure::Bpffs(anyhow!("x")),
            Failure::AlreadyRunning("a".to_owned()),
            Failure::Config(Vec::new()),
            Failure::NoObject,
            Failure::Load(anyhow!("x")),
            Failure::Attach(anyhow!("x")),
        ];
        let mut codes: Vec<u8> = Vec::new();
        for f in all {
            assert!(!f.to_string().contains('\n'));
            codes.push(number(&Err(Problem::Agent(f))));
        }
        assert_eq!(codes, (10..20).collect::<Vec<u8>>());
        assert_eq!(number(&Err(Problem::Query(anyhow!("x")))), 2);
    }
}
