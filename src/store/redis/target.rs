//! What is to be connected to, in one form of URL: a server, whichever server sentinels say is the primary, or a Cluster.

use redis::ConnectionAddr;

use super::address::{Address, Files};
use super::url::{Scheme, Url};

/// The forms that a URL may have.
const FORMS: &str = "write redis://user:password@host:port/database, of which only the host is needed, rediss:// for \
                     TLS, redis+unix:///path/to/socket, redis+sentinel://host:port,host:port/service/database, \
                     or redis+cluster://host:port,host:port";

/// What buckets are shared in. Shows no secrets.
#[derive(Clone, Debug)]
pub enum Target {
    /// One server.
    Server(Address),
    /// The nodes of a Cluster, of which these are some.
    Cluster(Vec<Address>),
    /// The server that sentinels say is the primary.
    Sentinels {
        /// What they call it.
        service: String,
        /// Each of them.
        sentinels: Vec<Address>,
        /// How to be let in by the server that they name: it has the host and port of none yet.
        server: Address,
    },
}

impl Target {
    /// Reads a URL, and the files that say more than it does: those that are given here, or else those that it names.
    ///
    /// # Errors
    /// What is wrong, in a line: it cannot be understood, or a file cannot be read or makes no sense with the rest.
    pub fn parse(url: &str, files: &Files) -> Result<Self, String> {
        let mut url = Url::parse(url).map_err(|error| format!("{error}; {FORMS}"))?;
        let mut known = vec!["username_file", "password_file"];
        let mut files = files.clone();
        let fill = |file: &mut Option<_>, url: &mut Url, option| {
            let written = url.take(option).map(Into::into);
            *file = file.take().or(written);
        };
        fill(&mut files.username, &mut url, "username_file");
        fill(&mut files.password, &mut url, "password_file");
        if url.scheme.tls() {
            known.extend(["ca", "cert", "key"]);
            fill(&mut files.ca, &mut url, "ca");
            fill(&mut files.certificate, &mut url, "cert");
            fill(&mut files.key, &mut url, "key");
        } else if files.ca.is_some() || files.certificate.is_some() || files.key.is_some() {
            return Err("certificates are for TLS: the URL begins with rediss:// then".into());
        }
        if files.certificate.is_some() != files.key.is_some() {
            return Err(
                "a client's certificate and its key come together: --redis-cert and --redis-key, or cert= \
                        and key= in the URL"
                    .into(),
            );
        }
        match url.scheme {
            Scheme::Sentinel | Scheme::SentinelTls => {
                known.extend(["sentinel_username", "sentinel_password"]);
                known.extend(["sentinel_username_file", "sentinel_password_file"]);
                fill(&mut files.sentinel_username, &mut url, "sentinel_username_file");
                fill(&mut files.sentinel_password, &mut url, "sentinel_password_file");
                let login = (url.take("sentinel_username"), url.take("sentinel_password"));
                url.nothing_left(&known)?;
                Self::sentinels(&url, login, files)
            }
            Scheme::Cluster | Scheme::ClusterTls => {
                url.nothing_left(&known)?;
                Self::seeds(&url, &files)
            }
            Scheme::Plain | Scheme::Tls | Scheme::Socket => {
                if files.sentinel_username.is_some() || files.sentinel_password.is_some() {
                    return Err(
                        "a login for sentinels needs sentinels: the URL begins with redis+sentinel:// then"
                            .into(),
                    );
                }
                let socket = url.scheme == Scheme::Socket;
                if socket {
                    known.push("db");
                }
                let (addr, number) = match (&url.hosts[..], &url.path[..]) {
                    ([], [path]) => (ConnectionAddr::Unix(path.into()), url.take("db")),
                    ([host], []) => (addr(host, url.scheme), None),
                    ([host], [number]) => (addr(host, url.scheme), Some(number.clone())),
                    _ => {
                        return Err(format!(
                            "there is more than a database's number behind the host; {FORMS}"
                        ));
                    }
                };
                url.nothing_left(&known)?;
                let address =
                    Address::new(addr, (url.user, url.password), database(number.as_deref())?, files)?;
                address.client()?;
                Ok(Self::Server(address))
            }
        }
    }

    fn seeds(url: &Url, files: &Files) -> Result<Self, String> {
        if files.sentinel_username.is_some() || files.sentinel_password.is_some() {
            return Err(
                "a login for sentinels needs sentinels: the URL begins with redis+sentinel:// then".into()
            );
        }
        let number = match &url.path[..] {
            [] => 0,
            [number] => database(Some(number))?,
            _ => return Err(format!("nothing stands behind the hosts of a Cluster; {FORMS}")),
        };
        if number != 0 {
            return Err("a Cluster has no databases but 0".into());
        }
        let login = (url.user.clone(), url.password.clone());
        let seed = |host| Address::new(addr(host, url.scheme), login.clone(), 0, files.clone());
        let seeds: Vec<Address> = url.hosts.iter().map(seed).collect::<Result<_, _>>()?;
        seeds.iter().try_for_each(|seed| seed.client().map(drop))?;
        Ok(Self::Cluster(seeds))
    }

    fn sentinels(url: &Url, login: (Option<String>, Option<String>), files: Files) -> Result<Self, String> {
        let (service, number) = match &url.path[..] {
            [service] => (service, None),
            [service, number] => (service, Some(&**number)),
            _ => {
                return Err("behind the sentinels stands what they call the primary, and then its database's number: \
                            redis+sentinel://host:port,host:port/mymaster/0"
                    .into());
            }
        };
        let own = Files {
            username: files.sentinel_username.clone(),
            password: files.sentinel_password.clone(),
            ..files.clone()
        };
        let sentinels: Vec<Address> = url
            .hosts
            .iter()
            .map(|host| Address::new(addr(host, url.scheme), login.clone(), 0, own.clone()))
            .collect::<Result<_, _>>()?;
        let nowhere = addr(&(String::new(), 0), url.scheme);
        let server =
            Address::new(nowhere, (url.user.clone(), url.password.clone()), database(number)?, files)?;
        sentinels.iter().chain([&server]).try_for_each(|address| address.client().map(|_| ()))?;
        Ok(Self::Sentinels { service: service.clone(), sentinels, server })
    }
}

fn addr((host, port): &(String, u16), scheme: Scheme) -> ConnectionAddr {
    if scheme.tls() {
        ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host.clone(), *port)
    }
}

fn database(text: Option<&str>) -> Result<i64, String> {
    let number = text.map_or(Ok(0), str::parse::<u32>);
    number.map(Into::into).map_err(|_| "a database is a number, such as 0".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(url: &str) -> Result<Target, String> {
        Target::parse(url, &Files::default())
    }

    #[test]
    fn each_form_leads_to_what_it_says() {
        for (url, shown) in [
            ("redis://host", "Server(Address(host:6379))"),
            ("valkeys://user:secret@host:1/2", "Server(Address(host:1))"),
            ("redis+unix:///run/redis.sock?db=3", "Server(Address(/run/redis.sock))"),
            ("redis+cluster://:secret@one,two:1", "Cluster([Address(one:6379), Address(two:1)])"),
            (
                "redis+sentinel://user:secret@one,two:1/main/3?sentinel_username=me&sentinel_password=secret",
                "Sentinels { service: \"main\", sentinels: [Address(one:26379), Address(two:1)], server: Address(:0) }",
            ),
        ] {
            assert_eq!(format!("{:?}", parse(url).unwrap()), shown);
        }
    }

    #[test]
    fn sentinels_have_a_login_of_their_own_and_share_the_certificates() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            directory.path().join(name).to_str().unwrap().to_owned()
        };
        let (user, password) = (file("user", "filed\n"), file("password", "secret2\n"));
        let url = format!(
            "redis+sentinel://user:secret@one/main/3?sentinel_username=me&sentinel_password_file={password}\
             &username_file={user}"
        );
        let Target::Sentinels { sentinels, server, .. } = parse(&url).unwrap() else { panic!("sentinels") };
        let login = |address: &Address| {
            let client = address.client().unwrap();
            let settings = client.get_connection_info().redis_settings();
            (settings.username().unwrap().to_owned(), settings.password().unwrap().to_owned(), settings.db())
        };
        assert_eq!(login(&sentinels[0]), ("me".to_owned(), "secret2".to_owned(), 0));
        assert_eq!(login(&server), ("filed".to_owned(), "secret".to_owned(), 3));

        // What a flag says comes first.
        let flag = Path::new(&file("other", "flagged")).to_owned();
        let files = Files { username: Some(flag), ..Files::default() };
        let Target::Sentinels { server, .. } = Target::parse(&url, &files).unwrap() else {
            panic!("sentinels")
        };
        assert_eq!(login(&server).0, "flagged");
    }

    #[test]
    fn what_makes_no_sense_is_said_without_secrets() {
        for (url, said) in [
            ("redis://:secret@host/1/2", "more than a database's number"),
            ("redis://:secret@host/x", "a database is a number"),
            ("redis://:secret@host/-1", "a database is a number"),
            ("redis://:secret@host?pasword_file=x", "did you mean `password_file`?"),
            ("redis://:secret@host?ca=/x", "unknown option `ca`"),
            ("redis+sentinel://:secret@host", "behind the sentinels stands what they call the primary"),
            ("redis+sentinel://:secret@host/main/x", "a database is a number"),
            (
                "redis+sentinel://:secret@host/main?sentinel_pasword=secret",
                "did you mean `sentinel_password`?",
            ),
            ("redis+sentinel://:secret@host/main?sentinel_password_file=/nowhere", "/nowhere: No such file"),
            ("redis+cluster://:secret@one,two/1", "no databases but 0"),
            ("redis+cluster://:secret@one,two/0/1", "nothing stands behind the hosts"),
            ("rediss+cluster://:secret@host?ca=/nowhere", "/nowhere: No such file"),
            ("rediss://:secret@host?cert=/x", "cert= and key= in the URL"),
            ("rediss://:secret@host?ca=/nowhere", "/nowhere: No such file"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(said) && !error.contains("secret@"), "{url}: {error}");
        }
        let files = Files { sentinel_password: Some("/x".into()), ..Files::default() };
        let error = Target::parse("redis://host", &files).unwrap_err();
        assert!(error.contains("redis+sentinel://"), "{error}");
    }
}
