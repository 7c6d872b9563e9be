//! An admission webhook that lets everything pass: what matters is whether the API server reaches it.
//!
//! One request a connection, so that each is a first packet for whoever judges connections.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use socket2::{Protocol, Type};

use crate::serve;

const PATIENCE: Duration = Duration::from_secs(5);
/// No review is as long as this.
const LONGEST: u64 = 4 << 20;

/// Answers on the port until the process ends. The folder has `tls.crt` and `tls.key`, as a Secret is mounted.
pub(crate) fn start(port: u16, folder: &Path) -> Result<()> {
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| format!("can't read {name} in {folder:?}"));
    let certificates = CertificateDer::pem_slice_iter(&read("tls.crt")?).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    let config = Arc::new(config);
    let socket = serve::open(Type::STREAM, Protocol::TCP, port)?;
    socket.listen(128).context("can't listen")?;
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            thread::spawn(move || {
                if let Err(error) = answer(stream, config) {
                    println!("webhook: {error:#}");
                }
            });
        }
    });
    Ok(())
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(stream.by_ref().take(LONGEST).read_line(&mut line)? > 0, "{peer} hung up");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("a length that is none")?;
        }
    }
    ensure!(length <= LONGEST, "{length} bytes are too many");
    let mut body = Vec::new();
    stream.by_ref().take(length).read_to_end(&mut body)?;
    let review: Value = serde_json::from_slice(&body).context("not a review")?;
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": review["request"]["uid"], "allowed": true},
    });
    let answer = answer.to_string();
    println!("webhook: {peer} asked");
    let mut stream = stream.into_inner();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}",
        answer.len()
    )?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}
