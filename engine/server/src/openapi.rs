//! The OpenAPI document: what is served, as the code has it.

use serde::Deserialize;
use utoipa::openapi::{AllOfBuilder, Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::generation::Controls;
use crate::openai::chat::ChatFields;
use crate::openai::completions::CompletionFields;

/// A request whose fields are read as several types.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident = $($part:ty),+) => {
        $(#[$doc])*
        #[derive(Deserialize)]
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
