//! An istiod as far as certificates go: a gRPC server over TLS that signs what it is asked to, or does what it is told.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::istiod::{Istiod, Overrides, Roots};
use cairn_identity::{SpiffeId, peer_identity};
use cairn_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use cairn_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use cairn_proto::prost_types::value::Kind;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};

pub const NAME: &str = "istiod.istio-system.svc";
pub const HOUR: Duration = Duration::from_secs(3600);

/// What is answered to one request.
#[derive(Clone)]
pub enum Reply {
    /// What an istiod answers: `[leaf, root]`.
    Good,
    /// Good, valid for that long from now on.
    Ttl(Duration),
    /// Good, with the way over two intermediates.
    Intermediates,
    /// Good, with these roots instead of its own.
    Roots(String),
    /// A certificate for another identity.
    Identity(&'static str),
    /// A certificate for a key that is not the request's.
    ForeignKey,
    /// A certificate with these options.
    Options(IssueOptions),
    /// These elements, whatever was asked.
    Elements(Vec<String>),
    /// The leaf alone.
    LeafOnly,
    /// An error.
    Status(Code),
}

/// What a request came with.
#[derive(Clone, Debug)]
pub struct Call {
    pub authorization: Option<String>,
    pub cluster_id: Option<String>,
    pub certificate: Option<SpiffeId>,
    pub ttl: i64,
    pub signer: Option<String>,
}

/// How the server behaves.
#[derive(Clone)]
pub struct Setup {
    pub signing: DevCa,
    pub id: SpiffeId,
    /// The token that it takes; `None`: any.
    pub token: Option<String>,
    /// The authority whose client certificates it takes.
    pub client_roots: DevCa,
    pub alpn: bool,
    pub plaintext: bool,
}

pub struct Authority {
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    setup: Setup,
    script: Mutex<VecDeque<Reply>>,
    otherwise: Mutex<Reply>,
    calls: Mutex<Vec<Call>>,
}

impl Setup {
    pub fn new() -> Self {
        let signing = DevCa::new("td").unwrap();
        let id = signing.id("shop", "waypoint").unwrap();
        let client_roots = signing.clone();
        Self { signing, id, token: None, client_roots, alpn: true, plaintext: false }
    }

    /// Listens on a port of its own.
    pub async fn start(self) -> Authority {
        self.start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(self, address: SocketAddr) -> Authority {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = (!self.plaintext).then(|| TlsAcceptor::from(Arc::new(self.tls())));
        let state = Arc::new(State {
            setup: self,
            script: Mutex::default(),
            otherwise: Mutex::new(Reply::Good),
            calls: Mutex::default(),
        });
        let (sender, receiver) = mpsc::channel::<io::Result<Peer>>(16);
        let incoming = futures::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|peer| (peer, receiver))
        });
        let service = IstioCertificateServiceServer::from_arc(Arc::clone(&state));
        let task = tokio::spawn(async move {
            let accept = async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let (acceptor, sender) = (acceptor.clone(), sender.clone());
                    tokio::spawn(async move {
                        let peer = match acceptor {
                            Some(acceptor) => {
                                acceptor.accept(tcp).await.map(|tls| Peer::Tls(Box::new(tls)))
                            }
                            None => Ok(Peer::Plain(tcp)),
                        };
                        // A refused client is no reason for the server to end.
                        if let Ok(peer) = peer {
                            let _ = sender.send(Ok(peer)).await;
                        }
                    });
                }
            };
            let serve = Server::builder().add_service(service).serve_with_incoming(incoming);
            tokio::select! {
                () = accept => {}
                served = serve => served.unwrap(),
            }
        });
        Authority { address, state, task: task.abort_handle() }
    }

    fn tls(&self) -> ServerConfig {
        let options = IssueOptions { dns_sans: vec![NAME.to_owned()], ..IssueOptions::default() };
        let id = self.signing.id("istio-system", "istiod").unwrap();
        let bundle = self.signing.issue_pem(&id, options).unwrap();
        let chain = CertificateDer::pem_slice_iter(bundle.cert_chain.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.client_roots.root_pem().as_bytes());
        roots.add(root.unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        if self.alpn {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        config
    }
}

impl Authority {
    /// The next answers, in order; after them it is [`Authority::otherwise`], which begins as good.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.script.lock().unwrap().extend(replies);
    }

    pub fn otherwise(&self, reply: Reply) {
        *self.state.otherwise.lock().unwrap() = reply;
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// How to reach it, with the token in `token`.
    pub fn istiod(&self, token: Option<&Path>) -> Istiod {
        istiod_at(self.address, &self.state.setup.signing, token)
    }
}

/// How to reach an istiod at `address` that has a certificate of `ca`.
pub fn istiod_at(address: SocketAddr, ca: &DevCa, token: Option<&Path>) -> Istiod {
    Istiod {
        address: format!("{NAME}:15012"),
        server_name: None,
        roots: Roots::Pem(ca.root_pem().to_owned()),
        resolve: Overrides::parse(&format!("{NAME}:15012={address}")).unwrap(),
        token: token.map(Path::to_owned),
        cluster_id: "Kubernetes".to_owned(),
        identity: None,
        plaintext: false,
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl IstioCertificateService for State {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let text = |name: &str| {
            request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let message = request.get_ref();
        let call = Call {
            authorization: text("authorization"),
            cluster_id: text("clusterid"),
            certificate: request.extensions().get::<Shown>().and_then(|shown| shown.0.clone()),
            ttl: message.validity_duration,
            signer: message.metadata.as_ref().and_then(|metadata| {
                match metadata.fields.get("CertSigner")?.kind.as_ref()? {
                    Kind::StringValue(name) => Some(name.clone()),
                    _ => None,
                }
            }),
        };
        self.calls.lock().unwrap().push(call.clone());
        if call.certificate.is_none() {
            let Some(token) = call.authorization.as_deref().and_then(|t| t.strip_prefix("Bearer "))
            else {
                return Err(Status::unauthenticated("request authenticate failure"));
            };
            if self.setup.token.as_deref().is_some_and(|wanted| wanted != token) {
                return Err(Status::unauthenticated("request authenticate failure"));
            }
        }
        let reply = self.script.lock().unwrap().pop_front();
        let reply = reply.unwrap_or_else(|| self.otherwise.lock().unwrap().clone());
        let cert_chain = self.setup.answer(&message.csr, reply)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Setup {
    fn answer(&self, csr: &str, reply: Reply) -> Result<Vec<String>, Status> {
        let Self { signing: ca, id, .. } = self;
        let root = ca.root_pem().to_owned();
        let good = IssueOptions::default;
        let from_now = |ttl| IssueOptions { ttl, not_before: Some(SystemTime::now()), ..good() };
        let with_root = |mut chain: Vec<String>, root: String| {
            chain.push(root);
            chain
        };
        let signed = |options| ca.sign(csr, id, options).unwrap();
        Ok(match reply {
            Reply::Good => with_root(signed(good()), root),
            Reply::Ttl(ttl) => with_root(signed(from_now(ttl)), root),
            Reply::Intermediates => {
                let below = ca.intermediate().unwrap().intermediate().unwrap();
                with_root(below.sign(csr, id, good()).unwrap(), root)
            }
            Reply::Roots(roots) => with_root(signed(good()), roots),
            Reply::Identity(other) => {
                with_root(ca.sign(csr, &SpiffeId::parse(other).unwrap(), good()).unwrap(), root)
            }
            Reply::ForeignKey => vec![ca.issue_pem(id, good()).unwrap().cert_chain, root],
            Reply::Options(options) => with_root(signed(options), root),
            Reply::Elements(elements) => elements,
            Reply::LeafOnly => signed(good()),
            Reply::Status(code) => return Err(Status::new(code, "as the script has it")),
        })
    }
}

/// A client and the identity in the certificate that it showed.
pub enum Peer {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

#[derive(Clone)]
pub struct Shown(Option<SpiffeId>);

impl Connected for Peer {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        Shown(match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => {
                stream.get_ref().1.peer_certificates().map(|list| peer_identity(list).unwrap())
            }
        })
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
