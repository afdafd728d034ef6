//! The HTTP listener, and who may ask what of it.

use std::path::PathBuf;
use std::str::FromStr;

use crate::rules::AddressRange;
use crate::serve::Endpoint;

/// The HTTP listener.
#[derive(Clone, Debug, clap::Args)]
pub struct HttpSettings {
    /// Address on which to answer HTTP: probes, metrics, rules, JSON; `off` for none
    ///
    /// As `0.0.0.0:8080`, `[::]:8080`, or `unix:/path/to/socket`.
    #[arg(long, env = "WEIR_HTTP", value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub http: HttpEndpoint,

    /// Address ranges that may ask for more than probes, with commas between them
    ///
    /// Without it, this machine and private networks; or any address, if --http-token-file is set.
    #[arg(long, env = "WEIR_HTTP_ALLOW", value_name = "RANGE", value_delimiter = ',')]
    pub http_allow: Vec<AddressRange>,

    /// File with a token that whoever asks for more than probes must send, as `authorization: Bearer TOKEN`
    ///
    /// It may be replaced while weir runs.
    #[arg(long, env = "WEIR_HTTP_TOKEN_FILE", value_name = "FILE")]
    pub http_token_file: Option<PathBuf>,
}

/// Where to answer HTTP, if anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpEndpoint(pub Option<Endpoint>);

impl FromStr for HttpEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            text => text.parse().map(Some).map(Self).map_err(|error: String| format!("{error}, or off")),
        }
    }
}
