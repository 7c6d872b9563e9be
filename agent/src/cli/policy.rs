//! `bulkhead policy`: everything about policy files. Each command below is a file; what they read is read here.

mod check;
mod cluster;
mod diff;
mod estate;
mod export;
mod files;
mod import;
mod objects;
mod simulate;
mod suggest;
mod test;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Check policy files: what is wrong, and what may not mean what it says
    #[command(after_help = "Examples:\n  bulkhead policy check policies/*.yaml\n  \
        bulkhead policy check --config /etc/bulkhead/bulkhead.yaml\n  \
        bulkhead policy check --strict --json --config bulkhead.yaml new.yaml\n\n\
        Errors keep a policy out of force. Warnings are about rules that are too broad, that never decide\n\
        anything because others do, that say the same twice, or (with --config) that refer to nobody.\n\n\
        Exit codes: 0 no errors, 1 errors (with --strict: or warnings), 2 a file couldn't be read.")]
    Check(check::Args),
    /// Write the rules that let through what was seen, with the evidence and the proof
    #[command(after_help = "Examples:\n  bulkhead policy suggest --config bulkhead.yaml --output suggested/\n  \
        bulkhead policy suggest --since 14d --for spiffe://example.org/payments/api\n  \
        bulkhead policy suggest --history seen.json --json | jq .proof\n\n\
        Without --output the policies go to standard output, and the report to standard error. Scans, slips\n\
        and what never answered are listed for you to decide, never allowed. docs/learning.md tells how.\n\n\
        Exit codes: 0 suggested, 1 nothing to go by or counts were lost, 2 couldn't be asked.")]
    Suggest(suggest::Args),
    /// Tell what policy files would newly deny or allow of what was seen
    #[command(after_help = "Examples:\n  bulkhead policy simulate --config bulkhead.yaml suggested/\n  \
        bulkhead policy simulate --history seen.json --enforce --instead new.yaml\n  \
        bulkhead policy simulate --config bulkhead.yaml --follow suggested/\n\n\
        The files are added to the policies that the configuration names, and replace those of the same\n\
        name. Policies in audit count as if they were enforced.\n\n\
        Exit codes: 0 nothing is newly denied, 1 something is, 2 couldn't be asked.")]
    Simulate(simulate::Args),
    /// Compare two sets of policy files by what they allow
    #[command(after_help = "Examples:\n  bulkhead policy diff old/ new/\n  \
        bulkhead policy diff --config bulkhead.yaml --json old.yaml new.yaml\n\n\
        It tells pairs and ports that rules gain or lose where everybody is under enforce, however the rules\n\
        are written.\n\n\
        Exit codes: 0 they allow the same, 1 they don't, 2 couldn't be read.")]
    Diff(diff::Args),
    /// Read NetworkPolicies, the tiers around them, or Istio's AuthorizationPolicies as policies
    #[command(after_help = "Examples:\n  \
        kubectl get networkpolicies -A -o yaml | bulkhead policy import --cluster --out imported/ -\n  \
        bulkhead policy import --pods pods.json netpol/*.yaml > imported.yaml\n  \
        bulkhead policy import --pods pods.json --json mesh.yaml | jq .findings\n\n\
        pods.json is `kubectl get pods,namespaces,endpointslices -A -o json`. Labels stand for who there is now.\n\
        What isn't carried as it is goes to standard error; it makes the result stricter, or is marked LOOSER.\n\
        docs/importing.md has the whole table.\n\n\
        Exit codes: 0 everything was carried, 1 something wasn't, 2 a file couldn't be read: nothing is written.")]
    Import(import::Args),
    /// Write policies as NetworkPolicies or as Istio's AuthorizationPolicies
    #[command(after_help = "Examples:\n  \
        bulkhead policy export --as networkpolicy --cluster policies/ > networkpolicies.yaml\n  \
        bulkhead policy export --as authorizationpolicy --pods pods.json --out mesh/ policies/*.yaml\n\n\
        pods.json is `kubectl get pods,namespaces -A -o json`: labels are found in it that tell identities apart.\n\
        What can't be said there goes to standard error, with which way it errs. docs/importing.md has the table.\n\n\
        Exit codes: 0 everything was said, 1 something can't be, 2 a file couldn't be read: nothing is written.")]
    Export(export::Args),
    /// Run tables of cases against policy files, and tell which rules none of them touches
    #[command(after_help = "Examples:\n  bulkhead policy test tests.yaml --policies policies/\n  \
        bulkhead policy test tests/*.yaml --config bulkhead.yaml --min-coverage 80\n  \
        kubectl get namespaces,pods,segpol,csegpol --all-namespaces --output json |\n    \
        bulkhead policy test tests.yaml --objects -\n\n\
        A case is {from, to, port, protocol, outcome, reason}; docs/policy.md has the form.\n\n\
        Exit codes: 0 all passed, 1 a case failed or too few rules are covered, 2 couldn't be read.")]
    Test(test::Args),
}

pub(super) fn run(command: &Command) -> super::Result {
    match command {
        Command::Check(args) => check::run(args),
        Command::Suggest(args) => suggest::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Test(args) => test::run(args),
    }
}
