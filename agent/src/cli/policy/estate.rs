//! Who there is, for `import` and `export`: from files, or from a cluster, which is only read.

use crate::cli::client;
use crate::cli::fleet::connect;
use crate::cli::table::WIDTH;
use crate::cluster::census::Census;
use crate::config::Template;
use crate::import::{Estate, File, Finding};
use crate::serve::api::printable;
use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::{Path, PathBuf};

/// How many objects the API server is asked for at once.
const PAGE: u32 = 500;

/// Where those come from whom labels stand for.
#[derive(clap::Args)]
pub(super) struct Whom {
    /// Objects that tell who there is: `kubectl get pods,namespaces,endpointslices -A -o json` (again for more)
    #[arg(long, value_name = "FILE", conflicts_with = "cluster")]
    pods: Vec<PathBuf>,
    /// Ask the cluster that the kubeconfig names; it is only read
    #[arg(long)]
    cluster: bool,
    /// Another context of the kubeconfig than the present one
    #[arg(long, value_name = "NAME", requires = "cluster")]
    context: Option<String>,
    /// What a pod's ID is, as `cluster.id` of the agents has it
    #[arg(long, value_name = "TEMPLATE", default_value = "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}")]
    id: String,
    /// The trust domain, as `cluster.trustDomain` of the agents has it
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
}

impl Whom {
    /// Who there is; nobody if nobody was asked.
    pub(super) fn estate(&self) -> anyhow::Result<Estate> {
        let template = Template::new(&self.id, &self.trust_domain).context("--id")?;
        let mut census = Census::default();
        if self.cluster {
            let _deaf = client::Deaf::new();
            census = client::block_on(async {
                let client = connect(self.context.as_deref()).await?;
                Ok(Census {
                    pods: all::<Pod>(&client, "pods").await?,
                    namespaces: all::<Namespace>(&client, "namespaces").await?,
                    slices: all::<EndpointSlice>(&client, "endpointslices").await?,
                })
            })?;
        } else if self.pods.is_empty() {
            return Ok(Estate::unknown(template));
        }
        for file in &self.pods {
            let (name, text) = read(file)?;
            census.add(&text).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        }
        census.estate(template).map_err(|e| anyhow::anyhow!("{e}"))
    }
}

/// All objects of a kind, page by page.
async fn all<K>(client: &Client, what: &str) -> anyhow::Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let (mut all, mut page) = (Vec::new(), ListParams::default().limit(PAGE));
    loop {
        let list = api.list(&page).await.with_context(|| format!("listing {what} (may you?)"))?;
        all.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// A file's name and text; `-` is standard input.
pub(super) fn read(file: &Path) -> anyhow::Result<(String, String)> {
    let name = printable(file.as_os_str().as_encoded_bytes());
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    Ok((name.clone(), text.with_context(|| format!("reading {name}"))?))
}

/// The files of folders, and the others as they are.
pub(super) fn expand(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            let file = entry.with_context(|| format!("reading {}", path.display()))?.path();
            if file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
                inside.push(file);
            }
        }
        inside.sort();
        all.append(&mut inside);
    }
    Ok(all)
}

/// Writes the files into a folder, none of which may be there, or all to standard output.
pub(super) fn store(folder: Option<&Path>, files: &[File]) -> anyhow::Result<()> {
    let Some(folder) = folder else {
        files.iter().for_each(|f| print!("{}", f.text));
        return Ok(());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    if let Some(there) = files.iter().map(|f| folder.join(&f.file)).find(|p| p.exists()) {
        bail!("{} is there already, and is never replaced: give another folder", there.display());
    }
    for file in files {
        let path = folder.join(&file.file);
        let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        let written = opened.and_then(|mut f| f.write_all(file.text.as_bytes()));
        written.with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// A finding as people read it: where and what on one line, why below.
pub(super) fn told(finding: &Finding) -> String {
    let Finding { file, line, column, object, field, errs, reason } = finding;
    let place = if *line > 0 { format!("{file}:{line}:{column}") } else { file.to_string() };
    let field = if field.is_empty() { String::new() } else { format!(" {field}") };
    let mut text = format!("{place}: {object}{field} ({})", errs.as_str());
    let mut column = usize::from(WIDTH);
    for word in reason.split(' ') {
        if column + 1 + word.chars().count() > usize::from(WIDTH) {
            text.push_str("\n   ");
            column = 3;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + word.chars().count();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Errs;

    #[test]
    fn a_reason_stands_below_its_place_and_fits() {
        let finding = Finding {
            file: "a.yaml".into(),
            line: 3,
            column: 5,
            object: "NetworkPolicy n/p".to_owned(),
            field: "spec.ingress[0]".to_owned(),
            errs: Errs::Looser,
            reason: "because of this and that ".repeat(9).trim_end().to_owned(),
        };
        let text = told(&finding);
        assert!(
            text.starts_with("a.yaml:3:5: NetworkPolicy n/p spec.ingress[0] (LOOSER)\n    because of this"),
            "{text}"
        );
        assert!(text.lines().all(|l| l.len() <= 100 && !l.ends_with(' ')) && text.lines().count() == 4, "{text}");
    }

    #[test]
    fn files_that_are_there_stay_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [File { file: "a.yaml".to_owned(), text: "new".to_owned() }];
        store(Some(folder.path()), &files).expect("written");
        let said = store(Some(folder.path()), &files).expect_err("in the way").to_string();
        assert!(said.contains("a.yaml is there already"), "{said}");
    }
}
