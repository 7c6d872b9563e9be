//! The Helm chart: the files of deploy/kubernetes/ with what people set taken out into values.
//!
//! Each replacement must be found, so that a file that changed can't quietly lose a value. Custom resources stand in the
//! chart's `crds/`, which Helm installs and never changes: `kubectl apply` brings a new version's.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Where the chart's files are, below deploy/.
pub(super) const FOLDER: &str = "helm/bulkhead";
/// The namespace of deploy/kubernetes/.
const NAMESPACE: &str = "bulkhead-system";
const WRITTEN: &str = "# Written by `cargo xtask manifests` from deploy/kubernetes/; edit that instead.\n";

/// The chart's files, by their names in it. `files` are those that the kustomization names, with their texts.
pub(super) fn files(files: &[(String, String)], version: &str) -> Result<BTreeMap<String, String>> {
    let mut chart = BTreeMap::new();
    let mut values = None;
    for (name, text) in files {
        let short = name.rsplit('/').next().unwrap_or(name);
        match short {
            "crds.yaml" => drop(chart.insert("crds/crds.yaml".to_owned(), text.clone())),
            "namespace.yaml" => {
                let text = format!("{{{{- if .Values.namespace.create }}}}\n{}{{{{- end }}}}\n", named(text));
                chart.insert(format!("templates/{short}"), format!("{WRITTEN}{text}"));
            }
            "agent.yaml" => {
                let (text, given) = agent(text)?;
                chart.insert(format!("templates/{short}"), format!("{WRITTEN}{text}"));
                values = Some(given);
            }
            _ => drop(chart.insert(format!("templates/{short}"), format!("{WRITTEN}{}", named(text)))),
        }
    }
    let values = values.context("the kustomization names no agent.yaml")?;
    chart.insert("values.yaml".to_owned(), values.text());
    chart.insert(
        "Chart.yaml".to_owned(),
        format!(
            "{WRITTEN}apiVersion: v2\nname: bulkhead\ntype: application\nversion: {version}\nappVersion: {version}\n\
             description: Keeps workloads apart by who they are, in the kernel\nkubeVersion: '>=1.33.0-0'\n"
        ),
    );
    Ok(chart)
}

fn named(text: &str) -> String {
    text.replace(NAMESPACE, "{{ .Release.Namespace }}")
}

/// What is set otherwise by people.
struct Values {
    repository: String,
    pull_policy: String,
    config: String,
    tolerations: String,
    requests: String,
    limits: String,
}

impl Values {
    fn text(&self) -> String {
        let Self { repository, pull_policy, config, tolerations, requests, limits } = self;
        let config: String = config.lines().map(|l| format!("  {l}\n")).collect();
        format!(
            "{WRITTEN}\
             # helm install bulkhead deploy/helm/bulkhead --namespace {NAMESPACE} --create-namespace\n\
             # kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=privileged\n\
             # In another namespace: name it under `exempt` in the configuration, and give --agents-in to --cluster.\n\
             namespace:\n  # Whether the chart makes its namespace, for `helm template`: `helm install` needs it there, or --create-namespace.\n  create: false\n\
             image:\n  repository: {repository}\n  # The chart's appVersion if it is empty.\n  tag: \"\"\n  \
             pullPolicy: {pull_policy}\n\
             # The agents' configuration.\n\
             config: |\n{config}\
             tolerations: {tolerations}\n\
             resources:\n  requests: {requests}\n  limits: {limits}\n"
        )
    }
}

/// The agent's file with its values taken out.
fn agent(text: &str) -> Result<(String, Values)> {
    let (before, rest) = text.split_once("  bulkhead.yaml: |\n").context("agent.yaml has no configuration")?;
    let (config, after) = rest.split_once("---\n").context("agent.yaml ends with the configuration")?;
    let mut config_lines = String::new();
    for line in config.lines() {
        let line = line.strip_prefix("    ").with_context(|| format!("the configuration's line `{line}`"))?;
        config_lines.push_str(line);
        config_lines.push('\n');
    }
    let mut text = format!("{before}  bulkhead.yaml: |\n{{{{ .Values.config | indent 4 }}}}\n---\n{after}");
    let mut take = |field: &str, by: &str| -> Result<String> {
        let start = text.find(field).with_context(|| format!("agent.yaml has no `{}`", field.trim()))? + field.len();
        let end = start + text[start..].find('\n').context("a line")?;
        let value = text[start..end].to_owned();
        text.replace_range(start..end, by);
        ensure!(!value.is_empty() && !text[start..].contains(field), "`{}` isn't there once", field.trim());
        Ok(value)
    };
    let image = take(
        "          image: ",
        "\"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}\"",
    )?;
    let values = Values {
        repository: image.rsplit_once(':').context("the image has no tag")?.0.to_owned(),
        pull_policy: take("          imagePullPolicy: ", "{{ .Values.image.pullPolicy }}")?,
        tolerations: take("      tolerations: ", "{{ .Values.tolerations | toJson }}")?,
        requests: take("            requests: ", "{{ .Values.resources.requests | toJson }}")?,
        limits: take("            limits: ", "{{ .Values.resources.limits | toJson }}")?,
        config: config_lines,
    };
    Ok((named(&text), values))
}
