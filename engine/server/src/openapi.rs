//! The OpenAPI document: what is served, as the code has it.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{AllOfBuilder, Ref, RefOr, Schema};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use crate::generation::Controls;
use crate::openai::chat::ChatFields;
use crate::openai::completions::CompletionFields;
use crate::openai::responses::ResponseFields;
use crate::{ollama, openai, operation};

/// A request whose fields are read as several types.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident = $($part:ty),+) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let all = AllOfBuilder::new()$(.item(Ref::from_schema_name(<$part as ToSchema>::name())))+;
                RefOr::T(Schema::AllOf(all.build()))
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                $(
                    schemas.push((<$part as ToSchema>::name().into(), <$part as PartialSchema>::schema()));
                    <$part as ToSchema>::schemas(schemas);
                )+
            }
        }
    };
}

body!(
    /// A chat.
    ChatBody = ChatFields, Controls
);
body!(
    /// A completion.
    CompletionBody = CompletionFields, Controls
);
body!(
    /// A response.
    ResponseBody = ResponseFields, Controls
);
body!(
    /// A chat, as Ollama has it.
    OllamaChatBody = ollama::chat::OllamaChat, ollama::chat::OllamaControls
);
body!(
    /// One prompt, as Ollama has it.
    OllamaGenerateBody = ollama::chat::OllamaGenerate, ollama::chat::OllamaControls
);

/// All paths. Bodies are described by the types that read them.
#[derive(OpenApi)]
#[openapi(
    info(title = "Nightmonk", description = "A model on this machine, for clients of OpenAI's, Ollama's and llama-server's APIs."),
    paths(
        openai::chat::chat_completions,
        openai::completions::completions,
        openai::embeddings::embeddings,
        openai::responses::create,
        openai::responses::retrieve,
        openai::responses::delete,
        openai::responses::cancel,
        openai::responses::input_items,
        openai::models::list,
        openai::models::one,
        ollama::chat::chat,
        ollama::chat::generate,
        ollama::embed::embed,
        ollama::models::tags,
        ollama::models::show,
        ollama::models::ps,
        ollama::models::version,
        operation::health::health,
        operation::metrics::metrics,
        operation::slots::slots,
        operation::props::props,
        operation::experts::experts,
        operation::tokens::tokenize,
        operation::tokens::detokenize,
        openai::chat::apply_template,
        operation::adapters::list,
        operation::adapters::set_scales,
        operation::adapters::load,
        operation::adapters::unload,
    ),
    components(schemas(ChatBody, CompletionBody, ResponseBody, OllamaChatBody, OllamaGenerateBody)),
    modifiers(&Key),
    security(("key" = [])),
)]
struct Document;

/// How the key is shown.
struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The document as JSON.
pub(crate) fn openapi_document() -> String {
    Document::openapi().to_pretty_json().unwrap_or_default()
}

/// This document.
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], openapi_document()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written anew by `NIGHTMONK_WRITE_OPENAPI=1 cargo test -p engine-server openapi`.
    #[test]
    fn the_document_that_is_checked_in_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let document = openapi_document() + "\n";
        if std::env::var_os("NIGHTMONK_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &document).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == document, "docs/openapi.json is not that of the code");
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let document: serde_json::Value = serde_json::from_str(&openapi_document()).unwrap();
        let text = document.to_string();
        let mut references = 0;
        for (at, _) in text.match_indices("\"#/") {
            let pointer = &text[at + 2..];
            let pointer = &pointer[..pointer.find('"').unwrap()];
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            references += 1;
        }
        assert!(references > 10);
    }
}
