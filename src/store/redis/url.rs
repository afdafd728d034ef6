//! A Redis URL, taken apart.
//!
//! `scheme://[user[:password]@]host[:port][,host[:port]…][/path][?option=value[&option=value…]]`. Several hosts are why no
//! library for URLs does: to them, what follows the first port is an error. User, password, path and values of options are
//! percent-decoded. No error repeats what might be a password.

use percent_encoding::percent_decode_str;

/// What was written.
#[derive(Clone, Default)]
pub(super) struct Url {
    pub(super) scheme: Scheme,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// Host and port: one or more, none of a socket.
    pub(super) hosts: Vec<(String, u16)>,
    /// What stands between slashes behind the hosts; of a socket, its path as one.
    pub(super) path: Vec<String>,
    options: Vec<(String, String)>,
}

/// How a URL begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `redis://`, `rediss://`
    #[default]
    Plain,
    /// `rediss://`
    Tls,
    /// `redis+unix://`
    Socket,
    /// `redis+sentinel://`
    Sentinel,
    /// `rediss+sentinel://`
    SentinelTls,
    /// `redis+cluster://`
    Cluster,
    /// `rediss+cluster://`
    ClusterTls,
}

impl Scheme {
    /// The names it goes by; Valkey has names of its own for the same.
    const ALL: [(Self, &[&str]); 7] = [
        (Self::Plain, &["redis", "valkey"]),
        (Self::Tls, &["rediss", "valkeys"]),
        (Self::Socket, &["redis+unix", "valkey+unix", "unix"]),
        (Self::Sentinel, &["redis+sentinel", "valkey+sentinel"]),
        (Self::SentinelTls, &["rediss+sentinel", "valkeys+sentinel"]),
        (Self::Cluster, &["redis+cluster", "valkey+cluster"]),
        (Self::ClusterTls, &["rediss+cluster", "valkeys+cluster"]),
    ];

    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|(_, names)| names.contains(&&*text)).map(|(scheme, _)| scheme)
    }

    /// Whether it means TLS.
    pub(super) fn tls(self) -> bool {
        matches!(self, Self::Tls | Self::SentinelTls | Self::ClusterTls)
    }

    fn several_hosts(self) -> bool {
        !matches!(self, Self::Plain | Self::Tls | Self::Socket)
    }

    fn default_port(self) -> u16 {
        if matches!(self, Self::Sentinel | Self::SentinelTls) { 26379 } else { 6379 }
    }
}

/// What a password with these signs does to a URL.
const ESCAPE: &str =
    "in a user's name or a password, write `%2F` for `/`, `%3F` for `?`, `%23` for `#` and `%40` for `@`";

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// What is wrong with it, without any part that could be secret.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let unknown = || "this is no URL of a Redis".to_owned();
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(unknown)?;
        let scheme = Scheme::parse(scheme).ok_or_else(unknown)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let parsed = Self::parts(scheme, authority, rest);
        // A sign that should have been escaped ends the part before it, and the error is about something else then.
        if !authority.contains('@') && rest.contains('@') {
            return parsed.map_err(|_| format!("the host is not understood; {ESCAPE}"));
        }
        parsed
    }

    fn parts(scheme: Scheme, authority: &str, rest: &str) -> Result<Self, String> {
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        match fragment {
            "" => {}
            "insecure" => {
                return Err(
                    "`#insecure` would let anybody answer for Redis; name its authority with --redis-ca, or ca= \
                     in the URL"
                        .into(),
                );
            }
            _ => return Err(format!("nothing may follow a `#`; {ESCAPE}")),
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let given = |part: String| Some(part).filter(|part| !part.is_empty());
        let hosts = match scheme {
            Scheme::Socket if hosts.is_empty() => Vec::new(),
            Scheme::Socket => return Err("a socket has a path and no host: three slashes in a row".into()),
            _ => hosts_of(hosts, scheme)?,
        };
        let path = match scheme {
            Scheme::Socket => vec![decoded("the path", path)?],
            _ => path
                .split('/')
                .filter(|part| !part.is_empty())
                .map(|part| decoded("the path", part))
                .collect::<Result<_, _>>()?,
        };
        let option = |option: &str| {
            let (name, value) = option.split_once('=').ok_or("an option is written name=value")?;
            Ok::<_, String>((name.to_owned(), decoded("an option", value)?))
        };
        Ok(Self {
            scheme,
            user: given(decoded("the user's name", user)?),
            password: given(decoded("the password", password)?),
            hosts,
            path,
            options: query
                .split('&')
                .filter(|text| !text.is_empty())
                .map(option)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Takes the value of an option out; the last one's, if it is there more than once.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let mut value = None;
        self.options.retain(|(other, found)| {
            if other == name {
                value = Some(found.clone());
            }
            other != name
        });
        value
    }

    /// Says so when an option is left that nobody took; `known` are those that would have been.
    pub(super) fn nothing_left(&self, known: &[&str]) -> Result<(), String> {
        match self.options.first() {
            None => Ok(()),
            Some((name, _)) => {
                let near = known.iter().find(|known| strsim::damerau_levenshtein(known, name) <= 3);
                let hint = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", known.join(", ")),
                };
                Err(format!("unknown option `{name}`: {hint}"))
            }
        }
    }
}

fn hosts_of(text: &str, scheme: Scheme) -> Result<Vec<(String, u16)>, String> {
    let hosts = text.split(',').enumerate().map(|(index, host)| {
        let bad = |what: &str| format!("host {} {what}", index + 1);
        // An IPv6 address stands in brackets, since it has colons itself.
        let (name, port) = match host.strip_prefix('[') {
            Some(host) => host.split_once(']').ok_or_else(|| bad("has a `[` and no `]`"))?,
            None => host.split_at_checked(host.find(':').unwrap_or(host.len())).unwrap_or((host, "")),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => scheme.default_port(),
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(bad("has a port that is none: write a number from 1 to 65535")),
                Ok(port) => port,
            },
            None => return Err(bad("is not understood")),
        };
        match name {
            "" => Err(bad("is missing")),
            "0.0.0.0" | "::" => Err(bad("is an address to listen on, not one to connect to")),
            _ => Ok((name.to_owned(), port)),
        }
    });
    let hosts: Vec<_> = hosts.collect::<Result<_, _>>()?;
    if hosts.len() > 1 && !scheme.several_hosts() {
        return Err(
            "there are several hosts: write redis+sentinel:// for sentinels, or redis+cluster:// for a Cluster".into()
        );
    }
    Ok(hosts)
}

fn decoded(what: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| format!("{what} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_logins_and_options_are_read() {
        let mut url = Url::parse(
            "redis+sentinel://me:p%40ss%2C@one,two:1,[fd00::1],[::1]:2/main/3?sentinel_password=a%26b&x=1",
        )
        .unwrap();
        assert_eq!(url.scheme, Scheme::Sentinel);
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("p@ss,")));
        let hosts = [("one", 26379), ("two", 1), ("fd00::1", 26379), ("::1", 2)];
        assert_eq!(url.hosts, hosts.map(|(host, port)| (host.to_owned(), port)));
        assert_eq!(url.path, ["main", "3"]);
        assert_eq!(url.take("sentinel_password").as_deref(), Some("a&b"));
        assert_eq!(url.nothing_left(&["xy"]).unwrap_err(), "unknown option `x`: did you mean `xy`?");
        assert_eq!(url.take("x").as_deref(), Some("1"));
        assert_eq!(url.nothing_left(&[]), Ok(()));

        let url = Url::parse("redis+unix:///run/redis%20x/redis.sock").unwrap();
        assert_eq!((url.path, url.hosts), (vec!["/run/redis x/redis.sock".to_owned()], Vec::new()));
        let url = Url::parse("rediss://:secret@redis").unwrap();
        assert_eq!((url.user, url.password.as_deref()), (None, Some("secret")));
        assert_eq!(url.hosts, [("redis".to_owned(), 6379)]);
    }

    #[test]
    fn what_is_wrong_is_said_without_what_may_be_secret() {
        for (url, said) in [
            ("secret", "no URL of a Redis"),
            ("http://secret", "no URL of a Redis"),
            ("redis://:secret@", "host 1 is missing"),
            ("redis://:secret@host:none", "host 1 has a port that is none"),
            ("redis://:secret@host:0", "host 1 has a port that is none"),
            ("redis://:secret@host:70000", "host 1 has a port that is none"),
            ("redis://:secret@[::1", "host 1 has a `[` and no `]`"),
            ("redis://:secret@[::1]x", "host 1 is not understood"),
            ("redis://:secret@0.0.0.0", "an address to listen on"),
            ("redis://:secret@one,two", "redis+sentinel:// for sentinels"),
            ("redis+cluster://:secret@one,,two", "host 2 is missing"),
            ("redis://:%FFsecret@one", "the password is not UTF-8"),
            ("redis://:sec/ret@host", "`%2F` for `/`"),
            ("redis://:sec?secret@host", "`%3F` for `?`"),
            ("redis://:sec#secret@host", "`%23` for `#`"),
            ("redis://:secret@host#secret", "nothing may follow a `#`"),
            ("rediss://:secret@host#insecure", "name its authority with --redis-ca"),
            ("redis://:secret@host?secret", "an option is written name=value"),
            ("redis+unix://secret/path", "three slashes"),
        ] {
            let error = Url::parse(url).err().unwrap_or_else(|| panic!("{url} is understood"));
            assert!(error.contains(said), "{url}: {error}");
            assert!(!error.contains("secret") && !error.contains("sec/"), "{url}: {error}");
        }
    }
}
