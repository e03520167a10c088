//! `DATABASE_URL`: its form, and how a connection to it is protected.

use std::net::IpAddr;

use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::rules::{Rule, ensure, is_private};

/// The protection of the connection to Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The connection does not leave this machine.
    Loopback,
    /// No certificate that was issued for this host is required, because it is in a private network.
    Private,
    /// The server's certificate is verified, and that it was issued for this host.
    Verified,
    /// The server's certificate is verified, but it may have been issued for any host.
    AnyHost,
    /// The connection is encrypted, but the server's certificate is not verified.
    Unverified,
    /// The connection is not encrypted, or only if the server supports it.
    Optional,
}

impl Tls {
    /// The protection that a Postgres URL requests; `None` if the URL is invalid.
    ///
    /// The driver's own parser decides, so that every spelling has the meaning that it has when the driver
    /// connects: `host` and `hostaddr` in the query, `PGHOST`, `PGSSLMODE` and the other `PG*` variables.
    pub fn of(url: &SecretString) -> Option<Self> {
        let options: PgConnectOptions = url.expose_secret().parse().ok()?;
        let place = match options.get_socket() {
            Some(_) => Place::Loopback,
            None => Place::of(options.get_host()),
        };
        Some(match (place, options.get_ssl_mode()) {
            (Place::Loopback, _) => Self::Loopback,
            (_, PgSslMode::VerifyFull) => Self::Verified,
            (Place::Private, _) => Self::Private,
            // sqlx trusts Mozilla's list of public authorities in addition to the CA file.
            (Place::Remote, PgSslMode::VerifyCa) => Self::AnyHost,
            // Unlike libpq, sqlx does not treat `require` with `sslrootcert` as `verify-ca`.
            (Place::Remote, PgSslMode::Require) => Self::Unverified,
            (Place::Remote, PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer) => {
                Self::Optional
            }
        })
    }

    /// Whether somebody on the network path to a remote database can impersonate it.
    pub(super) fn is_insecure(self) -> bool {
        matches!(self, Self::Unverified | Self::Optional)
    }

    /// What is wrong with the connection, as the rest of a sentence after `DATABASE_URL`; `None` if nothing
    /// is wrong that the operator could change without knowing the network.
    pub fn weakness(self) -> Option<&'static str> {
        match self {
            Self::Loopback | Self::Private | Self::Verified => None,
            Self::AnyHost => Some(
                "uses sslmode=verify-ca, which does not check the host name, so any server with a certificate from a public authority can impersonate the database. Use sslmode=verify-full",
            ),
            Self::Unverified => Some(
                "does not verify the certificate of the database server, so anyone on the network path can read and change the data. Use sslmode=verify-full&sslrootcert=<CA file>, and remove DATABASE_TLS=insecure",
            ),
            Self::Optional => Some(
                "does not require encryption, so anyone on the network path can read and change the data and the password. Use sslmode=verify-full&sslrootcert=<CA file>, and remove DATABASE_TLS=insecure",
            ),
        }
    }
}

/// The passwords in a Postgres URL, decoded and as they are spelled.
pub(super) fn passwords(url: &SecretString) -> Vec<String> {
    let Ok(url) = Url::parse(url.expose_secret()) else {
        return Vec::new();
    };
    let spelled = url.password().map(str::to_owned);
    // These characters have a meaning in queries, but not in this part of a URL.
    let decoded = spelled.as_deref().and_then(|text| {
        let text = text
            .replace('+', "%2B")
            .replace('&', "%26")
            .replace('=', "%3D");
        let (text, _) = form_urlencoded::parse(text.as_bytes()).next()?;
        Some(text.into_owned())
    });
    let query = url.query_pairs().filter(|(name, _)| name == "password");
    let query = query.map(|(_, value)| value.into_owned());
    spelled.into_iter().chain(decoded).chain(query).collect()
}

/// Where a host is.
enum Place {
    Loopback,
    Private,
    Remote,
}

impl Place {
    fn of(host: &str) -> Self {
        // The driver uses such a host as the directory of a Unix socket.
        if host.starts_with('/') {
            return Self::Loopback;
        }
        let host = host.trim_matches(['[', ']']);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let address = match host.parse() {
            Ok(address) => Some(address),
            // The resolver accepts addresses in other notations: `134744072` is 8.8.8.8. A name with a
            // character that is not allowed, such as the comma of a list, is not known to be local.
            Err(_) if host.is_empty() || host.contains(|c| !is_name(c)) => return Self::Remote,
            Err(_) => match Url::parse(&format!("http://{host}"))
                .as_ref()
                .map(Url::host_str)
            {
                Ok(Some(name)) => name.parse::<IpAddr>().ok(),
                _ => return Self::Remote,
            },
        };
        let name = address.map_or_else(|| host.to_ascii_lowercase(), |ip| ip.to_string());
        if name == "localhost" || address.is_some_and(|ip| ip.is_loopback()) {
            Self::Loopback
        } else if is_private(&name) {
            Self::Private
        } else {
            Self::Remote
        }
    }
}

/// A URL that the database driver can parse.
pub(super) fn url(secret: &str) -> Rule<()> {
    let scheme_fits = secret.starts_with("postgres://") || secret.starts_with("postgresql://");
    ensure(
        scheme_fits && secret.parse::<PgConnectOptions>().is_ok() && !is_cut(secret),
        (),
        "must be in the form `postgresql://user:password@host:port/database`, with special characters in the password percent-encoded",
    )
}

/// Whether a special character ends the host early: in `user:12/34@host/db` and `user:12#34@host/db`, the host
/// is `user`, which is where the driver would connect.
fn is_cut(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| {
        let has_database = url.path().len() > 1;
        let in_query = !has_database && url.query().is_some_and(|query| query.contains('@'));
        url.path().contains('@') || url.fragment().is_some() || in_query
    })
}

/// Whether a URL contains a password, so that `PGPASSWORD` is not used.
pub(super) fn has_password(url: &SecretString) -> bool {
    Url::parse(url.expose_secret()).is_ok_and(|url| {
        url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password")
    })
}

/// A URL whose connection nobody on the network path can impersonate.
pub(super) fn verified(secret: &str) -> Rule<()> {
    let tls = Tls::of(&secret.into());
    ensure(
        tls.is_none_or(|tls| !tls.is_insecure()),
        (),
        "points to a host that is not local, so the certificate of the database server must be verified: \
         add `sslmode=verify-full&sslrootcert=/path/prod-ca-2021.crt` to its query \
         (for Supabase, download this file from the dashboard under Database Settings > SSL Configuration), \
         use a host on this machine or in a private network, \
         or set DATABASE_TLS=insecure to accept that anyone on the network path can read and change the data",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(url: &str) -> Option<Tls> {
        Tls::of(&format!("postgres://{url}").into())
    }

    #[test]
    fn databases_are_what_the_driver_understands() {
        for good in [
            "postgres://postgres@localhost/postgres",
            "postgresql://u:p@db.example.com:6543/postgres?sslmode=verify-full",
            "postgresql:///app?host=/var/run/postgresql",
            "postgresql://localhost/app?user=u&password=p@ss",
        ] {
            assert!(url(good).is_ok(), "{good}");
        }
        for bad in [
            "mysql://u:p@localhost/x",
            "sqlite://data",
            "localhost:5432",
            "postgresql://u:pa#ss@localhost:5432/x",
            "postgresql://u:12#ss@localhost:5432/x",
            "postgresql://u:12/ss@localhost:5432/x",
            "postgresql://u:12?ss@localhost:5432/x",
            "postgresql://u:p@localhost:port/x",
            "postgresql://u:p@localhost/x?sslmode=maybe",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_verified_certificate_protects_the_database_connection() {
        use Tls::{AnyHost, Loopback, Optional, Private, Unverified, Verified};
        for (address, expected) in [
            ("u:p@localhost/app", Loopback),
            ("u:p@127.0.0.1:5432/app?sslmode=disable", Loopback),
            ("u:p@[::1]/app", Loopback),
            ("u:p@%2Frun%2Fpostgresql/app", Loopback),
            ("u:p@localhost/app?host=/run", Loopback),
            ("u:p@postgres/app", Private),
            ("u:p@10.0.0.7/app?sslmode=prefer", Private),
            ("u:p@DB.internal/app?sslmode=require", Private),
            ("u:p@10.0.0.7/app?sslmode=verify-full", Verified),
            ("u:p@db.example.org/app", Optional),
            ("u:p@db.example.org/app?sslmode=disable", Optional),
            ("u:p@db.example.org/app?sslmode=require", Unverified),
            ("u:p@db.example.org/app?ssl-mode=REQUIRE", Unverified),
            (
                "u:p@db.example.org/app?sslmode=require&sslrootcert=ca.crt",
                Unverified,
            ),
            ("u:p@db.example.org/app?sslmode=verify-ca", AnyHost),
            (
                "u:p@db.example.org/app?sslmode=verify-full&sslrootcert=ca.crt",
                Verified,
            ),
        ] {
            assert_eq!(tls(address), Some(expected), "{address}");
        }
    }

    #[test]
    fn passwords_are_found_in_every_spelling() {
        let url = "postgres://u:a%40b+c&d=e@h/db?password=in+query".into();
        assert_eq!(passwords(&url), ["a%40b+c&d%3De", "a@b+c&d=e", "in query"]);
        assert!(passwords(&"postgres://h/db".into()).is_empty());
    }

    #[test]
    fn no_spelling_of_a_remote_host_looks_local() {
        for remote in [
            "localhost/app?host=db.example.org",
            "localhost/app?hostaddr=8.8.8.8",
            "localhost/app?hostaddr=127.0.0.1&host=db.example.org",
            "localhost/app?%68ost=db.example.org",
            "localhost,db.example.org/app",
            "db.example.org,localhost/app",
            "localhost%2Cdb.example.org/app",
            "127.0.0.1.example.org/app",
            "localhost.example.org/app",
            "db.example.org./app",
            // 8.8.8.8 in the notations of inet_aton(3).
            "134744072/app",
            "0x08080808/app",
            "010.8.8.8/app",
            "8.526344/app",
            "[2001:db8::1]/app",
            "[::ffff:8.8.8.8]/app",
            "%31%32%37.0.0.1/app",
            "fe80::1%25eth0/app",
            "db.example.org/app?sslmode=verify-full&sslmode=disable",
        ] {
            // `None`: the driver does not parse it either, so it is refused.
            let found = tls(remote);
            assert!(found.is_none_or(Tls::is_insecure), "{remote}: {found:?}");
        }
    }
}
