//! JSON-RPC 2.0, as far as it is spoken here: one request a line, parameters by name, no batches.

use serde_json::{Map, Value, json};

/// What was asked for.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// Comes back in the answer. `None`: a notification, which gets none.
    pub id: Option<Value>,
    /// What to do.
    pub method: String,
    /// With what.
    pub params: Map<String, Value>,
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As JSON-RPC has them.
    pub code: i64,
    /// What is wrong and what to do.
    pub message: String,
}

impl Failure {
    /// The line is no JSON.
    pub const PARSE: i64 = -32700;
    /// It is JSON but no request.
    pub const REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD: i64 = -32601;
    /// Its parameters are not those of the method.
    pub const PARAMS: i64 = -32602;
    /// It was understood and cannot be done.
    pub const REFUSED: i64 = -32000;

    /// A failure of that kind.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Parameters that are missing, unknown or out of range.
    pub fn params(message: impl Into<String>) -> Self {
        Self::new(Self::PARAMS, message)
    }

    /// What cannot be done as things are.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Self::REFUSED, message)
    }
}

/// Reads a request. With the failure comes the `id` to answer to.
pub fn parse(line: &[u8]) -> Result<Request, (Value, Failure)> {
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        let message = format!("not JSON: {error}; send one request a line");
        (Value::Null, Failure::new(Failure::PARSE, message))
    })?;
    let mut object = match value {
        Value::Object(object) => object,
        Value::Array(_) => {
            return Err(no_request(Value::Null, "a batch is not taken; send one request a line"));
        }
        _ => return Err(no_request(Value::Null, EXAMPLE)),
    };
    let id = object.remove("id");
    let answer_to = match &id {
        None => Value::Null,
        Some(id @ (Value::Null | Value::Number(_) | Value::String(_))) => id.clone(),
        Some(_) => return Err(no_request(Value::Null, "`id` must be a number or a string")),
    };
    if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(no_request(answer_to, "add \"jsonrpc\": \"2.0\""));
    }
    let Some(Value::String(method)) = object.remove("method") else {
        return Err(no_request(answer_to, EXAMPLE));
    };
    let params = match object.remove("params") {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => {
            let message = "give the parameters by name: \"params\": {…}";
            return Err((answer_to, Failure::params(message)));
        }
    };
    Ok(Request { id, method, params })
}

const EXAMPLE: &str = "write for example {\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"status\"}";

fn no_request(id: Value, help: &str) -> (Value, Failure) {
    (id, Failure::new(Failure::REQUEST, format!("not a JSON-RPC 2.0 request: {help}")))
}

/// An answer, with the end of its line.
pub fn answer(id: Value, result: Result<Value, Failure>) -> Vec<u8> {
    let answer = match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(Failure { code, message }) => {
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
        }
    };
    let mut line = answer.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_requests() {
        let request = parse(br#"{"jsonrpc":"2.0","id":"a","method":"m","params":{"x":1}}"#).unwrap();
        assert_eq!((request.id, request.method.as_str()), (Some(json!("a")), "m"));
        assert_eq!(request.params["x"], 1);
        let notification = parse(br#" {"jsonrpc":"2.0","method":"m"} "#).unwrap();
        assert_eq!((notification.id, notification.params.len()), (None, 0));
    }

    #[test]
    fn says_what_is_wrong() {
        for (line, id, code, part) in [
            ("", Value::Null, Failure::PARSE, "one request a line"),
            ("{", Value::Null, Failure::PARSE, "not JSON"),
            ("\u{0}", Value::Null, Failure::PARSE, "not JSON"),
            ("1", Value::Null, Failure::REQUEST, "write for example"),
            ("[{}]", Value::Null, Failure::REQUEST, "a batch is not taken"),
            (r#"{"id":7}"#, json!(7), Failure::REQUEST, "add \"jsonrpc\""),
            (r#"{"id":{},"jsonrpc":"2.0"}"#, Value::Null, Failure::REQUEST, "`id` must be"),
            (r#"{"id":7,"jsonrpc":"2.0","method":1}"#, json!(7), Failure::REQUEST, "write for example"),
            (r#"{"id":7,"jsonrpc":"2.0","method":"m","params":[1]}"#, json!(7), Failure::PARAMS, "by name"),
        ] {
            let (answer_to, failure) = parse(line.as_bytes()).unwrap_err();
            assert_eq!((answer_to, failure.code), (id, code), "{line}");
            assert!(failure.message.contains(part), "{line}: {}", failure.message);
        }
        // Deeper than any stack.
        assert_eq!(parse("[".repeat(60_000).as_bytes()).unwrap_err().1.code, Failure::PARSE);
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>, text in "\\{(\"(jsonrpc|id|method|params)\":(\"2.0\"|1|null|\\{\\}|\\[\\]),?){0,5}\\}?") {
            let _ = parse(&line);
            let _ = parse(text.as_bytes());
        }
    }
}
