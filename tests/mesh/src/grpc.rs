//! gRPC by hand: one call on a connection of its own, over TLS to istiod.

use bytes::{Bytes, BytesMut};
use cairn_proto::prost::Message;
use cairn_test_support::h2c::grpc_frame;
use cairn_test_support::pki::provider;
use h2::{RecvStream, SendStream};
use http::Request;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The name in istiod's certificate.
const NAME: &str = "istiod.istio-system.svc";

/// istiod's secure port, and who calls.
#[derive(Clone)]
pub struct Caller {
    /// Where it listens.
    pub address: SocketAddr,
    /// PEM.
    pub root: String,
    /// Of a service account, audience `istio-ca`.
    pub token: String,
    /// What istiod calls its cluster.
    pub cluster_id: String,
    /// Of its mesh.
    pub trust_domain: String,
}

/// A call that goes on in both directions.
pub struct Call {
    send: SendStream<Bytes>,
    receive: RecvStream,
    buffer: BytesMut,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Certificates in a PEM text.
pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

/// Those certificates as roots.
pub fn roots(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem) {
        roots.add(certificate).unwrap();
    }
    Arc::new(roots)
}

impl Caller {
    /// Starts a call with its first message.
    ///
    /// # Errors
    /// The connection's, or the status of a call that is refused at once.
    pub async fn start(&self, path: &str, first: &impl Message) -> Result<Call, String> {
        self.begin(path, first, false).await
    }

    async fn begin(&self, path: &str, first: &impl Message, only: bool) -> Result<Call, String> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(&self.root))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from(NAME).unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let tls = tls.map_err(|error| format!("TLS to istiod: {error}"))?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(16 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake::<_, Bytes>(tls)
            .await
            .map_err(|e| e.to_string())?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = Request::post(format!("https://{NAME}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", self.token))
            .header("clusterid", &self.cluster_id)
            .body(())
            .unwrap();
        let mut send = send.ready().await.map_err(|e| e.to_string())?;
        let (response, mut stream) =
            send.send_request(request, false).map_err(|e| e.to_string())?;
        stream.send_data(grpc_frame(&first.encode_to_vec()), only).map_err(|e| e.to_string())?;
        let response = response.await.map_err(|e| e.to_string())?;
        if let Some(status) = response.headers().get("grpc-status") {
            let message = response.headers().get("grpc-message");
            return Err(format!("grpc-status {status:?}: {message:?}"));
        }
        let receive = response.into_body();
        Ok(Call { send: stream, receive, buffer: BytesMut::new(), driver })
    }

    /// A call with one message in each direction.
    ///
    /// # Errors
    /// As [`Caller::start`].
    pub async fn unary<R: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
    ) -> Result<R, String> {
        self.begin(path, request, true).await?.next().await
    }
}

impl Call {
    /// One more message.
    ///
    /// # Errors
    /// The stream's.
    pub fn say(&mut self, message: &impl Message) -> Result<(), String> {
        let frame = grpc_frame(&message.encode_to_vec());
        self.send.send_data(frame, false).map_err(|e| e.to_string())
    }

    /// The next message.
    ///
    /// # Errors
    /// The stream's, or the status when it has ended.
    pub async fn next<R: Message + Default>(&mut self) -> Result<R, String> {
        loop {
            if let [0, a, b, c, d, ..] = self.buffer.as_ref() {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                if self.buffer.len() >= 5 + length {
                    let frame = self.buffer.split_to(5 + length);
                    let message = frame.get(5..).unwrap_or_default();
                    return R::decode(message).map_err(|e| e.to_string());
                }
            }
            match self.receive.data().await {
                Some(Ok(data)) => {
                    let _ = self.receive.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => {
                    let trailers = self.receive.trailers().await.map_err(|e| e.to_string())?;
                    return Err(format!("the call has ended: {trailers:?}"));
                }
            }
        }
    }
}
