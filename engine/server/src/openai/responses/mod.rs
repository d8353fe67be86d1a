//! `/v1/responses`: answers that can be asked for again, gone on from, and made while nobody waits.

mod document;
mod events;
mod fields;
mod items;
mod store;

pub(crate) use fields::ResponseFields;
pub(crate) use store::Store;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::generation::{Choices, Generation, in_background, patiently, stream};
use crate::input::Input;
use crate::served::Shared;
use document::ResponseDocument;
use events::ResponseStream;
use fields::{Asked, of_response};

/// Most items of a page of a conversation, and those of one that is not asked to have so many. (OpenAI's.)
const PAGE_MAX: usize = 100;
const PAGE: usize = 20;

/// How a response is asked for.
#[derive(Debug, Deserialize, IntoParams)]
pub(crate) struct Retrieve {
    /// Only `false`: a response that is asked for later is told as a whole.
    stream: Option<bool>,
}

/// Which items are asked for.
#[derive(Debug, Deserialize, IntoParams)]
pub(crate) struct Page {
    /// The id of the item before the first.
    after: Option<String>,
    /// How many, from 1 to 100; 20 where it is not said.
    limit: Option<usize>,
    /// `asc`, or `desc` (the default): the last one first.
    order: Option<String>,
}

/// Makes a response.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI",
    request_body = inline(crate::openapi::ResponseBody),
    responses((status = 200, description = "The response, or a stream of events", body = ResponseDocument),
              (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn create(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    match answer(shared, request).await {
        Ok(response) => response,
        Err(error) => of_response(error).into_response(),
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let (generation, asked) = in_background(&shared, move |shared| {
        let asked = Asked::new(&input, shared)?;
        let chat = &asked.chat;
        let prompted = chat.prompt.prompted(&shared.model)?;
        let mut generation = Generation::new(shared, &chat.controls, vec![prompted], "input", &chat.wants)?;
        generation.parallel_calls = chat.parallel_calls;
        Ok((generation, asked))
    })
    .await?;
    let choices = generation.start(&shared)?;
    let Asked { chat, document, conversation } = asked;
    if document.background {
        let (runs, gone) = oneshot::channel();
        shared.responses.begin(document.clone(), conversation, runs)?;
        let response = Json(&document).into_response();
        tokio::spawn(detached(choices, document, gone, shared));
        return Ok(response);
    }
    let kept = document.store.then_some(conversation);
    if chat.controls.streams() {
        return Ok(stream(choices, ResponseStream::new(document, kept, shared)));
    }
    Ok(patiently(async move {
        let document = whole(choices, document, &shared).await?;
        let answer = serde_json::to_value(&document).map_err(|error| ApiError::engine(error.to_string()));
        if let Some(conversation) = kept {
            shared.responses.keep(document, conversation);
        }
        answer
    })
    .await)
}

/// Waits for the whole answer.
async fn whole(
    mut choices: Choices,
    mut document: ResponseDocument,
    shared: &Shared,
) -> Result<ResponseDocument, ApiError> {
    while let Some(updates) = choices.next().await {
        if document.background {
            shared.responses.started(&document.id);
        }
        for update in updates? {
            document.update(update, shared, |_, _, _| {});
        }
    }
    document.end(choices.usage());
    Ok(document)
}

/// Makes a response that nobody waits for, until it is there or `gone` says that it is not wanted.
async fn detached(choices: Choices, document: ResponseDocument, gone: oneshot::Receiver<()>, shared: Arc<Shared>) {
    let mut failed = document.clone();
    let made = async {
        // A bug is this response's end; it must not seem to run for ever.
        let made = AssertUnwindSafe(whole(choices, document, &shared)).catch_unwind().await;
        made.unwrap_or_else(|_| Err(ApiError::engine("internal error; please report it")))
    };
    let made = tokio::select! {
        _ = gone => return,
        made = made => made,
    };
    shared.responses.ended(made.unwrap_or_else(|error| {
        failed.fail(&error);
        failed
    }));
}

/// A response that was made, or is being made in the background.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path, description = "Its id"), Retrieve),
    responses((status = 200, description = "The response", body = ResponseDocument), (status = "4XX", description = "There is none of this id")))]
pub(crate) async fn retrieve(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    query: Result<Query<Retrieve>, QueryRejection>,
) -> Response {
    told(query.map_err(of_query).and_then(|Query(Retrieve { stream })| {
        if stream.unwrap_or(false) {
            let why = "a response that is asked for later is told as a whole";
            return Err(ApiError::unsupported("stream", why));
        }
        shared.responses.get(&id)
    }))
}

/// Forgets a response; one that is being made is given up.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "It is no longer there"), (status = 404, description = "There is none of this id")))]
pub(crate) async fn delete(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    told(shared.responses.delete(&id).map(|()| json!({"id": id, "object": "response", "deleted": true})))
}

/// Gives up a response that is being made in the background. One that has ended is told as it is.
#[utoipa::path(post, path = "/v1/responses/{id}/cancel", tag = "OpenAI", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The response", body = ResponseDocument), (status = "4XX", description = "There is none of this id in the background")))]
pub(crate) async fn cancel(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    told(shared.responses.cancel(&id))
}

/// The conversation before a response.
#[utoipa::path(get, path = "/v1/responses/{id}/input_items", tag = "OpenAI", params(("id" = String, Path, description = "Its id"), Page),
    responses((status = 200, description = "A page of items"), (status = "4XX", description = "There is none of this id")))]
pub(crate) async fn input_items(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    query: Result<Query<Page>, QueryRejection>,
) -> Response {
    told(query.map_err(of_query).and_then(|Query(asked)| page(&shared, &id, &asked)))
}

fn page(shared: &Shared, id: &str, Page { after, limit, order }: &Page) -> Result<Value, ApiError> {
    let mut items = shared.responses.conversation(id)?;
    match order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::unsupported("order", "known are `asc` and `desc`")),
    }
    let limit = limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::field("limit", format!("`limit` must be from 1 to {PAGE_MAX}")));
    }
    let first = match after {
        None => 0,
        Some(after) => {
            let before = items.iter().position(|item| item.id() == after);
            before.ok_or_else(|| ApiError::field("after", "no item has this id"))? + 1
        }
    };
    let page: Vec<_> = items.iter().skip(first).take(limit).collect();
    let (first_id, last_id) = (page.first().map(|item| item.id()), page.last().map(|item| item.id()));
    let has_more = first + page.len() < items.len();
    Ok(json!({"object": "list", "data": page, "first_id": first_id, "last_id": last_id, "has_more": has_more}))
}

fn told<T: serde::Serialize>(answer: Result<T, ApiError>) -> Response {
    match answer {
        Ok(document) => Json(document).into_response(),
        Err(error) => error.into_response(),
    }
}

fn of_query(rejection: QueryRejection) -> ApiError {
    ApiError::bad_request(rejection.body_text())
}
