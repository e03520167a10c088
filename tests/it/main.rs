mod deploy_sql;
mod support;
