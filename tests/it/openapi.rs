//! Every response of the API matches its OpenAPI description.

use serde_json::{Map, Value, json};

use crate::support::scenario::{Backend, Scenario, TRUNCATED, Video};

/// The differences between a schema and a value, for the part of JSON Schema that the description uses.
fn disagreements(api: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return disagreements(api, &api["components"]["schemas"][name], value, at);
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let mut all = Map::new();
        let mut parts: Vec<&Value> = parts.iter().collect();
        while let Some(part) = parts.pop() {
            let part = resolved(api, part);
            parts.extend(part["allOf"].as_array().into_iter().flatten());
            for (name, schema) in part["properties"].as_object().into_iter().flatten() {
                all.insert(name.clone(), schema.clone());
            }
        }
        let whole = json!({"type": "object", "properties": all});
        return disagreements(api, &whole, value, at);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => return Vec::new(),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.contains(&is) {
        return vec![format!("{at} is {is}, not {types:?}")];
    }
    let mut found = Vec::new();
    for item in value.as_array().into_iter().flatten() {
        found.extend(disagreements(
            api,
            &schema["items"],
            item,
            &format!("{at}[]"),
        ));
    }
    if let (Some(value), Some(named)) = (value.as_object(), schema["properties"].as_object()) {
        for (name, value) in value {
            match named.get(name) {
                Some(schema) => {
                    found.extend(disagreements(api, schema, value, &format!("{at}.{name}")));
                }
                None => found.push(format!("{at}.{name} is not described")),
            }
        }
        let missing = named.keys().filter(|name| !value.contains_key(*name));
        found.extend(missing.map(|name| format!("{at}.{name} is missing")));
    }
    found
}

fn resolved<'a>(api: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
    name.map_or(schema, |name| &api["components"]["schemas"][name])
}

#[tokio::test]
async fn every_response_matches_the_description() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (good, bad) = (Video::good(), Video::with(TRUNCATED));
    t.row(&good).await;
    t.row(&bad).await;
    t.push(&good).await;
    let delivery = t.push(&bad).await;
    t.work().await;
    t.post("/webhooks/github", &[], b"{}".to_vec()).await;
    let api = t.get("/api/openapi.json").await.json;
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"), "{api}");
    let (good, none) = (good.id(), uuid::Uuid::new_v4());
    let mut answered = Vec::new();
    for (method, path, asked) in [
        ("get", "/api/videos", "/api/videos?limit=1".to_owned()),
        (
            "get",
            "/api/videos/{video_id}",
            format!("/api/videos/{good}"),
        ),
        (
            "get",
            "/api/videos/{video_id}",
            format!("/api/videos/{none}"),
        ),
        (
            "post",
            "/api/videos/{video_id}/retry",
            format!("/api/videos/{good}/retry"),
        ),
        ("get", "/api/deliveries", "/api/deliveries".to_owned()),
        (
            "get",
            "/api/deliveries/{delivery}",
            format!("/api/deliveries/{}", delivery.guid),
        ),
        ("get", "/api/status", "/api/status".to_owned()),
        ("post", "/api/videos/retry", "/api/videos/retry".to_owned()),
        (
            "post",
            "/reconcile",
            "/reconcile?wait=0&verify=true".to_owned(),
        ),
        ("post", "/reconcile", "/reconcile?wait=999".to_owned()),
    ] {
        let answer = match method {
            "get" => t.get(&asked).await,
            _ if path == "/api/videos/retry" => t.send(path, &json!({"state": "failed"})).await,
            _ => t.ask(&asked).await,
        };
        let described = &api["paths"][path][method]["responses"];
        let status = answer.status.to_string();
        let described = described.get(&status).unwrap_or(&described["default"]);
        let mime = answer.headers["content-type"].to_str().unwrap();
        let schema = &described["content"][mime]["schema"];
        assert!(
            schema.is_object(),
            "{asked}: {mime} is not described: {described}"
        );
        let found = disagreements(&api, schema, &answer.json, "answer");
        assert!(found.is_empty(), "{asked}: {found:#?} in {:#}", answer.json);
        answered.push(path);
    }
    let described = api["paths"].as_object().unwrap().keys();
    let unasked: Vec<_> = described
        .filter(|path| !answered.contains(&path.as_str()))
        .collect();
    assert_eq!(unasked, ["/api/events"]);
    t.finish().await;
}
