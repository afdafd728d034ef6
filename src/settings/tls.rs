//! TLS on the listeners.

use std::path::PathBuf;

use crate::serve::tls::{Clients, San, TlsFiles};

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClientAuth {
    /// Each must.
    Required,
    /// One that is shown is checked
    Optional,
}

/// TLS on the gRPC listener.
#[derive(Clone, Debug, clap::Args)]
pub struct GrpcTls {
    /// PEM file of the certificate for gRPC; with it, gRPC is answered over TLS only
    ///
    /// Files are read again when they change. Unix sockets stay without TLS.
    #[arg(long, env = "WEIR_GRPC_TLS_CERT", value_name = "FILE", requires = "grpc_tls_key")]
    pub grpc_tls_cert: Option<PathBuf>,

    /// PEM file of its key
    #[arg(long, env = "WEIR_GRPC_TLS_KEY", value_name = "FILE", requires = "grpc_tls_cert")]
    pub grpc_tls_key: Option<PathBuf>,

    /// PEM file of the authorities that gRPC clients' certificates may be signed by; with it, clients must show one
    #[arg(long, env = "WEIR_GRPC_TLS_CLIENT_CA", value_name = "FILE", requires = "grpc_tls_cert")]
    pub grpc_tls_client_ca: Option<PathBuf>,

    /// Whether each gRPC client must
    #[arg(
        long,
        env = "WEIR_GRPC_TLS_CLIENT_AUTH",
        value_name = "WHETHER",
        default_value = "required",
        value_enum
    )]
    pub grpc_tls_client_auth: ClientAuth,

    /// Names of which a gRPC client's certificate must have one, with commas between them: hosts, addresses or URIs
    #[arg(
        long,
        env = "WEIR_GRPC_TLS_CLIENT_SAN",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "grpc_tls_client_ca"
    )]
    pub grpc_tls_client_san: Vec<San>,
}

/// TLS on the HTTP listener.
#[derive(Clone, Debug, clap::Args)]
pub struct HttpTls {
    /// PEM file of the certificate for HTTP; with it, HTTP is answered over TLS only
    #[arg(long, env = "WEIR_HTTP_TLS_CERT", value_name = "FILE", requires = "http_tls_key")]
    pub http_tls_cert: Option<PathBuf>,

    /// PEM file of its key
    #[arg(long, env = "WEIR_HTTP_TLS_KEY", value_name = "FILE", requires = "http_tls_cert")]
    pub http_tls_key: Option<PathBuf>,

    /// PEM file of the authorities that HTTP clients' certificates may be signed by
    ///
    /// A certificate stands for the token of --http-token-file.
    #[arg(long, env = "WEIR_HTTP_TLS_CLIENT_CA", value_name = "FILE", requires = "http_tls_cert")]
    pub http_tls_client_ca: Option<PathBuf>,

    /// Whether each HTTP client must show one; probes often cannot
    #[arg(
        long,
        env = "WEIR_HTTP_TLS_CLIENT_AUTH",
        value_name = "WHETHER",
        default_value = "optional",
        value_enum
    )]
    pub http_tls_client_auth: ClientAuth,

    /// Names of which an HTTP client's certificate must have one, with commas between them
    #[arg(
        long,
        env = "WEIR_HTTP_TLS_CLIENT_SAN",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "http_tls_client_ca"
    )]
    pub http_tls_client_san: Vec<San>,
}

impl GrpcTls {
    /// What TLS for gRPC is made of, if there is any.
    #[must_use]
    pub fn files(&self) -> Option<TlsFiles> {
        let clients = clients(&self.grpc_tls_client_ca, self.grpc_tls_client_auth, &self.grpc_tls_client_san);
        files(&self.grpc_tls_cert, &self.grpc_tls_key, clients)
    }
}

impl HttpTls {
    /// What TLS for HTTP is made of, if there is any.
    #[must_use]
    pub fn files(&self) -> Option<TlsFiles> {
        let clients = clients(&self.http_tls_client_ca, self.http_tls_client_auth, &self.http_tls_client_san);
        files(&self.http_tls_cert, &self.http_tls_key, clients)
    }
}

/// The command line has seen to it that a certificate and its key come together.
fn files(certificate: &Option<PathBuf>, key: &Option<PathBuf>, clients: Option<Clients>) -> Option<TlsFiles> {
    Some(TlsFiles { certificate: certificate.clone()?, key: key.clone()?, clients })
}

fn clients(authorities: &Option<PathBuf>, auth: ClientAuth, names: &[San]) -> Option<Clients> {
    Some(Clients {
        authorities: authorities.clone()?,
        are_required: auth == ClientAuth::Required,
        names: names.to_vec(),
    })
}
