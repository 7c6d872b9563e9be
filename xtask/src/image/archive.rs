//! A container image from files, without a container engine: an OCI image layout in a tar archive.
//!
//! The same files give the same bytes: entries are in a fixed order, owned by root, from the epoch, and nothing says when
//! or where the image was made. The layer isn't compressed: whoever pushes it does that, and the digest doesn't hang on
//! the version of a compressor.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What an image holds and starts.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// `HOST/NAME:TAG`.
    pub(crate) name: String,
    /// Programs and other files, by their absolute paths inside.
    pub(crate) files: Vec<(String, u32, Vec<u8>)>,
    /// Empty folders, for what is mounted there.
    pub(crate) folders: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    /// The arguments, if the pod doesn't say.
    pub(crate) command: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
}

impl Image {
    /// Writes the archive to `file`, and answers the image's digest.
    pub(crate) fn write(&self, file: &Path) -> Result<String> {
        let (archive, digest) = self.archive().with_context(|| format!("can't put {} together", self.name))?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        fs::write(file, archive).with_context(|| format!("can't write {}", file.display()))?;
        Ok(digest)
    }

    fn archive(&self) -> Result<(Vec<u8>, String)> {
        let layer = self.layer()?;
        let (layer_digest, layer_size) = (digest(&layer), layer.len());
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.command, "Env": ["PATH=/"], "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &digest(&config), config.len()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer_digest, layer_size)],
        }))?;
        let manifest_digest = digest(&manifest);
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_digest, manifest.len());
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        // The first is how containerd names it, the second how everybody else does.
        entry["annotations"] = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        }))?;

        let mut archive = Builder::new(Vec::new());
        add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(&mut archive, "index.json", 0o644, &index)?;
        for blob in [&manifest, &config, &layer] {
            add(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
        }
        Ok((archive.into_inner()?, manifest_digest))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        let mut folders = self.folders.clone();
        for (path, _, _) in &self.files {
            let above = Path::new(path).ancestors().skip(1).filter_map(Path::to_str);
            folders.extend(above.filter(|folder| *folder != "/").map(str::to_owned));
        }
        folders.sort();
        folders.dedup();
        for folder in folders {
            let mut header = header(0o755, 0);
            header.set_entry_type(EntryType::Directory);
            layer.append_data(&mut header, format!("{}/", folder.trim_start_matches('/')), [].as_slice())?;
        }
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by_key(|(path, _, _)| path);
        for (path, mode, content) in files {
            add(&mut layer, path.trim_start_matches('/'), *mode, content)?;
        }
        Ok(layer.into_inner()?)
    }
}

fn add(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    archive.append_data(&mut header(mode, content.len() as u64), path, content)?;
    Ok(())
}

/// Of a file that is root's, from the epoch.
fn header(mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn descriptor(kind: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": kind, "digest": digest, "size": size})
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// As container images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn image() -> Image {
        Image {
            name: "bulkhead.test/x:7".to_owned(),
            files: vec![("/b/program".to_owned(), 0o755, b"ELF".to_vec()), ("/a".to_owned(), 0o644, b"text".to_vec())],
            folders: vec!["/tmp".to_owned()],
            entrypoint: vec!["/b/program".to_owned()],
            command: Vec::new(),
            labels: Vec::new(),
        }
    }

    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().expect("it is an archive");
        let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
            let mut entry: tar::Entry<'_, &[u8]> = entry.expect("it is whole");
            assert_eq!(entry.header().mtime().expect("it has one"), 0);
            let path = entry.path().expect("it has one").to_string_lossy().into_owned();
            let mode = entry.header().mode().expect("it has one");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("it is whole");
            (path, mode, content)
        };
        entries.map(read).collect()
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_reached_from_the_index() {
        let (archive, manifest) = image().archive().expect("it is small");
        let entries = entries(&archive);
        let blob = |digest: &str| {
            let path = format!("blobs/{}", digest.replace(':', "/"));
            let found = entries.iter().find(|(name, _, _)| *name == path).expect("the blob is there");
            assert_eq!(super::digest(&found.2), digest);
            found.2.clone()
        };
        let index: Value = serde_json::from_slice(&entries[1].2).expect("it is JSON");
        assert_eq!(index["manifests"][0]["digest"], *manifest);
        let manifest: Value = serde_json::from_slice(&blob(&manifest)).expect("it is JSON");
        let config = blob(manifest["config"]["digest"].as_str().expect("it is text"));
        let config: Value = serde_json::from_slice(&config).expect("it is JSON");
        let layer = manifest["layers"][0]["digest"].as_str().expect("it is text");
        assert_eq!(config["rootfs"]["diff_ids"][0], layer);
        let inside: Vec<(String, u32)> =
            self::entries(&blob(layer)).into_iter().map(|(path, mode, _)| (path, mode)).collect();
        let expected = [("b/", 0o755), ("tmp/", 0o755), ("a", 0o644), ("b/program", 0o755)];
        assert_eq!(inside, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn the_order_of_the_files_changes_nothing() {
        let mut other = image();
        other.files.reverse();
        assert_eq!(image().archive().expect("it is small").1, other.archive().expect("it is small").1);
    }
}
