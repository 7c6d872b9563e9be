//! The cluster's certificates and the kubeconfigs that hold them, as kubeadm would lay them out.
//!
//! Every component is a user of its own with a certificate, so that the API server's own rules (Node authorizer,
//! NodeRestriction, bootstrap roles) apply. All keys are thrown away with the cluster.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// Somebody whom the API server knows by a certificate.
pub(super) struct User<'a> {
    pub(super) name: &'a str,
    pub(super) group: Option<&'a str>,
}

impl<'a> User<'a> {
    /// One whose rights come from its name.
    pub(super) fn new(name: &'a str) -> Self {
        Self { name, group: None }
    }
}

/// A certificate authority.
pub(super) struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Writes `NAME.crt` and `NAME.key` of the authority itself.
    pub(super) fn save(&self, folder: &Path, name: &str) -> Result<()> {
        save(folder, name, &self.certificate.pem(), &self.issuer.key().serialize_pem())
    }

    /// A certificate for `user`, as PEM, and its key.
    pub(super) fn client(&self, user: &User<'_>) -> Result<(String, String)> {
        self.sign(user, ExtendedKeyUsagePurpose::ClientAuth, Vec::new())
    }

    /// A certificate for a server that is reached by `names` and addresses among them.
    pub(super) fn server(&self, name: &str, names: &[&str]) -> Result<(String, String)> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        self.sign(&User::new(name), ExtendedKeyUsagePurpose::ServerAuth, names)
    }

    fn sign(&self, user: &User<'_>, usage: ExtendedKeyUsagePurpose, names: Vec<String>) -> Result<(String, String)> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named(user.name, user.group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// A kubeconfig by which `user` reaches the API server at `server`.
    pub(super) fn kubeconfig(&self, server: &str, user: &User<'_>) -> Result<String> {
        let (certificate, key) = self.client(user)?;
        let authority = self.certificate.pem();
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bulkhead", "cluster": {"server": server, "certificate-authority-data": base64(&authority)}}],
            "users": [{"name": user.name, "user": {"client-certificate-data": base64(&certificate), "client-key-data": base64(&key)}}],
            "contexts": [{"name": "bulkhead", "context": {"cluster": "bulkhead", "user": user.name}}],
            "current-context": "bulkhead",
        });
        // JSON is YAML.
        serde_json::to_string_pretty(&config).context("can't write a kubeconfig")
    }
}

/// Makes all that isn't a kubeconfig: authorities, the API server's own certificates, the key of service accounts.
/// Answers the authority that signs clients.
pub(super) fn make(folder: &Path, api_names: &[&str]) -> Result<Authority> {
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    let authority = Authority::new("kubernetes")?;
    authority.save(folder, "ca")?;
    let (certificate, key) = authority.server("kube-apiserver", api_names)?;
    save(folder, "apiserver", &certificate, &key)?;
    let kubelets = User { name: "kube-apiserver-kubelet-client", group: Some("system:masters") };
    let (certificate, key) = authority.client(&kubelets)?;
    save(folder, "apiserver-kubelet-client", &certificate, &key)?;

    let front = Authority::new("front-proxy-ca")?;
    front.save(folder, "front-proxy-ca")?;
    let (certificate, key) = front.client(&User::new("front-proxy-client"))?;
    save(folder, "front-proxy-client", &certificate, &key)?;

    let accounts = KeyPair::generate()?;
    write(&folder.join("sa.key"), &accounts.serialize_pem())?;
    write(&folder.join("sa.pub"), &accounts.public_key_pem())?;
    Ok(authority)
}

fn named(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    if let Some(group) = group {
        named.push(DnType::OrganizationName, group);
    }
    named
}

fn save(folder: &Path, name: &str, certificate: &str, key: &str) -> Result<()> {
    write(&folder.join(format!("{name}.crt")), certificate)?;
    write(&folder.join(format!("{name}.key")), key)
}

/// Writes a file that only root may read.
pub(super) fn write(file: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let opened = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(file);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("can't write {}", file.display()))
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
