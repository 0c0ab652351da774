//! The JSON Schema of the configuration (draft 2020-12), for editors and for checks before a
//! deployment, generated from the schema table. `config/gateway.schema.json` is its committed text.

use serde_json::{Map, Value as Json, json};
use toml::de::DeValue;

use super::schema_table::{KeySpec, Presence, Requirement, TABLES, TableSpec, keys_of};
use super::value_type::ValueType;

/// Returns the schema. It checks less than `load`: no relations between keys, no files.
pub fn schema() -> Json {
    let mut schema = object(
        "",
        "Configuration of telecomx-gateway. Durations such as \"30s\", sizes such as \"256MiB\".",
    );
    let described = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "telecomx-gateway",
    });
    if let (Json::Object(all), Json::Object(mut first)) = (&mut schema, described) {
        first.append(all);
        *all = first;
    }
    schema
}

fn object(path: &str, doc: &str) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys_of(path) {
        properties.insert(key.name().to_owned(), property(key));
        if matches!(key.requirement, Requirement::Required { .. }) {
            required.push(key.name());
        }
    }
    for table in TABLES.iter().filter(|table| parent(table) == path) {
        let name = table.path.rsplit('.').next().unwrap_or(table.path);
        properties.insert(name.to_owned(), table_schema(table));
        // A required key makes its table required.
        if matches!(table.presence, Presence::Always)
            && keys_of(table.path)
                .any(|key| matches!(key.requirement, Requirement::Required { .. }))
        {
            required.push(name);
        }
    }
    let mut schema = json!({ "description": doc, "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn table_schema(table: &TableSpec) -> Json {
    let Presence::Repeated { default } = table.presence else {
        return object(table.path, table.doc);
    };
    json!({
        "description": table.doc,
        "type": "array",
        "items": object(table.path, "One table."),
        "default": json_of_toml(default),
    })
}

fn parent(table: &TableSpec) -> &'static str {
    table.path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

fn property(key: &KeySpec) -> Json {
    let mut schema = json!({ "description": key.doc });
    if let (Json::Object(all), Json::Object(mut kind)) = (&mut schema, key.value_type.schema()) {
        all.append(&mut kind);
    }
    match key.requirement {
        Requirement::Default(text) => schema["default"] = json_of_toml(text),
        Requirement::Optional { example } | Requirement::Required { example } => {
            schema["examples"] = json!([json_of_toml(example)])
        }
    }
    if let ValueType::Duration { .. } = key.value_type {
        schema["examples"] = json!(["250ms", "30s", "1h30m"]);
    }
    schema
}

/// A default or example as JSON.
fn json_of_toml(text: &str) -> Json {
    // A test generates the whole schema.
    json_of(DeValue::parse(text).expect("the schema table holds TOML").get_ref())
}

/// TOML as JSON.
pub(super) fn json_of(value: &DeValue) -> Json {
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(number) => {
            json!(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(number) => json!(number.as_str().parse::<f64>().ok()),
        DeValue::Boolean(flag) => json!(flag),
        DeValue::Datetime(date) => json!(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| json_of(item.get_ref())).collect(),
        DeValue::Table(table) => table
            .iter()
            .map(|(name, value)| (name.get_ref().to_string(), json_of(value.get_ref())))
            .collect(),
    }
}
