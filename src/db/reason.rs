//! Why the database cannot be used, and what to do about it, in words for the operator.

use std::io::ErrorKind;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Error};

use super::{ACQUIRE_TIMEOUT, Db, DbError};
use crate::format::Unreachable;

impl Db {
    /// Opens one connection to Postgres and closes it. Unlike a pool, does not wait for a server that refuses
    /// connections.
    ///
    /// # Errors
    /// Why the connection cannot be established; see [`DbError::reason`].
    pub async fn reach(url: &SecretString) -> Result<(), DbError> {
        let connecting = PgConnection::connect(url.expose_secret());
        let connected = tokio::time::timeout(ACQUIRE_TIMEOUT, connecting).await;
        let connection = connected
            .unwrap_or(Err(Error::PoolTimedOut))
            .map_err(|error| explained(error, url))?;
        // The connection has served its purpose, so a failure to close it does not matter.
        let _ = connection.close().await;
        Ok(())
    }
}

/// The error of a connection to `url`. A missing file is named, because the URL tells which one it is.
pub(super) fn explained(error: Error, url: &SecretString) -> DbError {
    if !matches!(&error, Error::Io(error) if error.kind() == ErrorKind::NotFound) {
        return error.into();
    }
    let options: Option<PgConnectOptions> = url.expose_secret().parse().ok();
    let is_socket = options.is_some_and(|options| {
        options.get_socket().is_some() || options.get_host().starts_with('/')
    });
    DbError::Misconfigured(if is_socket {
        "its Unix socket does not exist. Start the database, or correct the folder of the socket in DATABASE_URL.".into()
    } else {
        "the file that sslrootcert in DATABASE_URL names does not exist. Copy the certificate of the authority there, or correct the path.".into()
    })
}

impl DbError {
    /// The cause and what to do, for people: the rest of a sentence about the database, without the final
    /// period. Contains nothing of DATABASE_URL.
    pub fn reason(&self) -> String {
        let error = match self {
            Self::Misconfigured(reason) => return reason.trim_end_matches('.').to_owned(),
            Self::Denied(cause) if cause.starts_with("permission denied for database") => {
                return "the role is not allowed to connect to it. Run `grant connect on database … to …` as the owner of the database".to_owned();
            }
            Self::Denied(cause) => {
                return format!("it denied access ({cause}). Run deploy/supabase/role.sql");
            }
            Self::Sqlx(error) => error,
        };
        let reason = match error {
            Error::Database(error) => {
                let known = rejected(&error.code().unwrap_or_default(), error.message());
                return match known {
                    Some(reason) => reason.to_owned(),
                    None => format!("it returned an error: {}", error.message()),
                };
            }
            Error::Io(error) => return unreachable(Unreachable::of(error)),
            Error::Tls(error) if error.to_string().contains("does not support TLS") => {
                "it does not support TLS. Enable TLS on the database server, or connect to a host that is on this machine or in a private network with sslmode=prefer"
            }
            Error::Tls(_) => {
                "the TLS connection failed. Check that sslrootcert in DATABASE_URL names a PEM file with the certificate of the authority"
            }
            Error::PoolTimedOut => {
                "it did not respond in time. Check the host and the port in DATABASE_URL, and that no firewall blocks them"
            }
            _ => {
                "its response is not that of a database. Check the host and the port in DATABASE_URL"
            }
        };
        reason.to_owned()
    }
}

/// The meaning of an error code of Postgres or SQLite; `None` if its message says more.
fn rejected(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" => {
            "the password is wrong. Set the password of that role in DATABASE_URL, with special characters percent-encoded (`@` as %40, `/` as %2F, `%` as %25)"
        }
        "28000" if message.ends_with("does not exist") => {
            "the role does not exist. Run deploy/supabase/role.sql, which creates the role video_ingest, or correct the user name in DATABASE_URL"
        }
        "28000" if message.contains("not permitted to log in") => {
            "the role is not allowed to log in. Run `alter role … login`, or correct the user name in DATABASE_URL"
        }
        "28000" => {
            "its pg_hba.conf does not allow this user to connect from this machine. Add a line for this user, database and address to pg_hba.conf, or change sslmode in DATABASE_URL"
        }
        "3D000" => {
            "it has no database of that name. Correct the name at the end of DATABASE_URL (on Supabase, `postgres`)"
        }
        "53300" => {
            "all of its connections are in use. Close connections of other programs, or connect through a pooler (on Supabase, port 6543)"
        }
        "57P03" => "it is starting up or shutting down. Try again in a minute",
        _ if message.contains("Tenant or user not found") => {
            "Supabase's pooler does not know the user. Use `video_ingest.<project ref>` as the user name, and the pooler's host of the project's region"
        }
        // SQLite: NOTADB, CORRUPT.
        "26" | "11" => {
            "the file is not an SQLite database or is corrupt. Restore it from a backup, or move it away to start with an empty one"
        }
        _ => return None,
    })
}

fn unreachable(reason: Unreachable) -> String {
    let action = match reason {
        Unreachable::Name => "Correct the host in DATABASE_URL",
        Unreachable::Refused => {
            "Start the database, or correct the host and the port in DATABASE_URL"
        }
        Unreachable::NoRoute => {
            "Check the network; the direct host of a Supabase project has only an IPv6 address, so use its pooler from IPv4 networks"
        }
        Unreachable::TimedOut | Unreachable::Lost => {
            "Check the host and the port in DATABASE_URL, and that no firewall blocks them"
        }
        Unreachable::Authority => {
            "Set sslrootcert in DATABASE_URL to the certificate of that authority (for Supabase, download it from the dashboard under Database Settings > SSL Configuration)"
        }
        Unreachable::OtherHost => {
            "Use the host name that the certificate was issued for in DATABASE_URL, or install a certificate for the current host name"
        }
        Unreachable::Expired => {
            "Renew the certificate of the database server, and check this machine's clock"
        }
        Unreachable::Certificate | Unreachable::NoTls => {
            "Check the TLS settings of the database server, and the port in DATABASE_URL"
        }
    };
    format!("{reason}. {action}")
}
