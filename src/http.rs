//! HTTP/1 beside gRPC, on a listener of its own: probes, metrics, the rules in force, and decisions as JSON.
//!
//! Probes answer everybody, and say no more than yes or no to those who may not know more. The rest is for those whom the
//! [`guard`] lets in. Every answer is short-lived and says so, and every request is bounded: in size, and in the time that
//! it may take to come.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming as Body};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;

use crate::limiter::Limiter;
use crate::proto::RateLimitRequest;
use crate::rules::Watch;
use crate::serve::tls::Tls;
use crate::serve::{Course, Incoming, Overload, Peer, Phase, Shed, Tally};
use crate::service::{Service, answer_unasked};
use crate::telemetry::Telemetry;

pub mod guard;
mod json;
mod ready;
mod rules;

use guard::{Caller, Guard, Refusal};

/// Connections that there may be: probes, a few who scrape, and whoever has no gRPC.
pub const MAX_CONNECTIONS: usize = 1024;

/// How old a connection may become: a bound for one whose client takes forever to read.
const MAX_AGE: Duration = Duration::from_secs(600);

/// How long what is under way may take after that, or when the process closes.
const GRACE: Duration = Duration::from_secs(5);

/// What every response says to browsers and caches: keep nothing, run nothing, show it nowhere else.
const HEADERS: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the endpoints answer from.
#[derive(Debug)]
pub struct Http {
    /// Who may ask for more than probes.
    pub guard: Guard,
    /// The rules, and how they stand.
    pub watch: Arc<Watch>,
    /// The stores, and how they stand.
    pub limiter: Arc<Limiter>,
    /// Decides what comes as JSON.
    pub service: Arc<Service>,
    /// Calls as JSON are calls like others.
    pub overload: Arc<Overload>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// On TCP.
    pub tls: Option<Arc<Tls>>,
    /// Connections.
    pub tally: Arc<Tally>,
    /// How far the process is.
    pub course: Course,
    /// Longest body taken, in bytes.
    pub max_body: usize,
    /// How long a request may take to come.
    pub request_timeout: Duration,
}

/// An answer.
type Answer = Response<Full<Bytes>>;

impl Http {
    /// Serves a connection to its end.
    pub async fn serve(self: Arc<Self>, mut incoming: Incoming, mut course: Course) {
        if let Some(tls) = &self.tls
            && incoming.peer != Peer::Local
        {
            let begun = tokio::select! {
                begun = tokio::time::timeout(self.request_timeout, tls.begin(incoming)) => begun,
                () = course.closing() => return,
            };
            incoming = match begun {
                Ok(Ok(begun)) => begun,
                _failed_or_late => return self.tally.fail(),
            };
        }
        let from = Caller { peer: incoming.peer, is_certified: incoming.is_certified };
        let service = service_fn(|request| {
            let http = Arc::clone(&self);
            async move { Ok::<_, Infallible>(http.answer(request, from).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Also how long a connection may be idle.
            .header_read_timeout(self.request_timeout)
            .serve_connection(TokioIo::new(incoming.wire), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ended = connection.as_mut() => return,
            () = tokio::time::sleep(MAX_AGE) => {}
            () = course.closing() => {}
        }
        connection.as_mut().graceful_shutdown();
        _ = tokio::time::timeout(GRACE, connection).await;
    }

    async fn answer(self: Arc<Self>, request: Request<Body>, from: Caller) -> Answer {
        let mut answer = self.route(request, from).await;
        for (name, value) in HEADERS {
            answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        answer
    }

    async fn route(self: Arc<Self>, request: Request<Body>, from: Caller) -> Answer {
        let get = [Method::GET, Method::HEAD];
        let path = request.uri().path().to_owned();
        let allowed: &[Method] = match path.as_str() {
            "/livez" | "/readyz" | "/healthcheck" | "/metrics" | "/rules" => &get,
            "/json" => &[Method::POST],
            _ => {
                let known = "there is /livez, /readyz, /healthcheck, /metrics, /rules and /json";
                return error(StatusCode::NOT_FOUND, &format!("nothing is at {path}; {known}"));
            }
        };
        if !allowed.contains(request.method()) {
            let methods = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("{} {path}: only {methods} is possible", request.method());
            let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, &message);
            if let Ok(methods) = HeaderValue::from_str(&methods) {
                answer.headers_mut().insert(ALLOW, methods);
            }
            return answer;
        }
        let permitted = self.guard.permits(from, request.headers().get(AUTHORIZATION));
        match path.as_str() {
            "/livez" => return text(StatusCode::OK, "ok\n"),
            "/readyz" | "/healthcheck" => return ready::answer(&self, permitted.is_ok()),
            _ => {}
        }
        if let Err(refusal) = permitted {
            return refuse(&refusal);
        }
        match path.as_str() {
            "/metrics" => {
                let accept =
                    request.headers().get(http::header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let accept = accept.map(str::to_owned);
                // Takes a while of many rules.
                let rendered =
                    tokio::task::spawn_blocking(move || self.telemetry.render(accept.as_deref())).await;
                match rendered {
                    Ok((content_type, metrics)) => respond(StatusCode::OK, content_type, metrics),
                    Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
                }
            }
            "/rules" => {
                let written = tokio::task::spawn_blocking(move || rules::answer(&self.watch)).await;
                written.unwrap_or_else(|failed| error(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()))
            }
            _ if request.headers().contains_key(ORIGIN) => {
                error(StatusCode::FORBIDDEN, "a browser asks for a page of another site: not answered")
            }
            _ => self.decide(request).await,
        }
    }

    /// `POST /json`.
    async fn decide(&self, request: Request<Body>) -> Answer {
        // Before its body is read: so many that cannot be answered need not be read either.
        let call = self.overload.admit();
        let request = match self.read(request).await {
            Ok(request) => request,
            Err(wrong) => {
                self.service.count_unreadable();
                return wrong;
            }
        };
        let decided = match &call {
            Ok(_under_way) => self.service.answer(&request).await,
            Err(Shed(policy)) => answer_unasked(&request, *policy),
        };
        json::answer(decided)
    }

    /// The request in a body, or what is answered if there is none.
    async fn read(&self, request: Request<Body>) -> Result<RateLimitRequest, Answer> {
        let too_large = || {
            let message = format!("the body is longer than {} bytes, see --max-message-bytes", self.max_body);
            error(StatusCode::PAYLOAD_TOO_LARGE, &message)
        };
        if request.body().size_hint().lower() > self.max_body as u64 {
            return Err(too_large());
        }
        let body = Limited::new(request.into_body(), self.max_body).collect();
        let body = match tokio::time::timeout(self.request_timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(failed)) if failed.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(failed)) => {
                return Err(error(StatusCode::BAD_REQUEST, &format!("the body broke off: {failed}")));
            }
            Err(_) => {
                let timeout = humantime::format_duration(self.request_timeout);
                let message = format!("the body was not there within {timeout}");
                return Err(error(StatusCode::REQUEST_TIMEOUT, &message));
            }
        };
        json::request(&body).map_err(|wrong| error(StatusCode::BAD_REQUEST, &wrong))
    }

    /// Whether the process is on its way out.
    fn is_draining(&self) -> bool {
        self.course.phase() > Phase::Serving
    }
}

/// Says why somebody may not have what he asked for.
fn refuse(refusal: &Refusal) -> Answer {
    let status = match refusal {
        Refusal::Token => StatusCode::UNAUTHORIZED,
        Refusal::Address(_) => StatusCode::FORBIDDEN,
        Refusal::Unreadable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = error(status, &refusal.to_string());
    if status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"weir\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    answer
}

/// An error, as `{"error":"…"}`.
fn error(status: StatusCode, message: &str) -> Answer {
    #[derive(Serialize)]
    struct Told<'m> {
        error: &'m str,
    }
    write(status, &Told { error: message })
}

/// A value as JSON.
fn write(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut json) => {
            json.push(b'\n');
            respond(status, JSON, json)
        }
        // Cannot be: what is written here has names for keys.
        Err(failed) => text(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
    }
}

fn text(status: StatusCode, text: &str) -> Answer {
    respond(status, TEXT, text.to_owned())
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
