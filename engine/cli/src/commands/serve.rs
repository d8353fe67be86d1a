//! `serve`: the model for clients that speak HTTP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine_core::checkpoint::Checkpoint;
use engine_core::text::{ChatTemplate, TextError};
use engine_server::{
    ComputeDigest, Listen, ServeError, ServedAdapter, ServedModel, ServerConfig, Start, Started, key_file, serve,
};

use super::generate::sampling;
use crate::args::Serve;
use crate::failure::Failure;
use crate::figures;
use crate::load_choice::Work;
use crate::model::{self, LogitRows, ModelText, Opened};

pub(crate) fn run(arguments: Serve) -> Result<(), Failure> {
    let folder = &arguments.model;
    model::check_folder(folder)?;
    let text = ModelText::from_dir(folder)?;
    let template = match ChatTemplate::from_dir(folder) {
        Ok(template) => Some(template),
        Err(TextError::Missing { .. }) => {
            eprintln!("note: there is no chat template, so only plain completions are served");
            None
        }
        Err(error) => return Err(error.into()),
    };
    if arguments.kv_dir.is_some() && arguments.run.no_prefix_cache {
        return Err(Failure::Usage("`--kv-dir` keeps the prefix cache: leave `--no-prefix-cache` out".into()));
    }
    let config = config(&arguments)?;
    let opened = Opened::new(folder, &arguments.run, arguments.parallel.get(), LogitRows::Last, Work::Long)?;
    let sampling = sampling(&arguments.draw, &text)?;
    let ModelText { tokenizer, eos, .. } = text;
    let (known, digest) = digest(folder)?;
    let served = ServedModel {
        names: names(&arguments),
        tokenizer,
        eos: eos.clone(),
        template,
        config: opened.checkpoint.config().clone(),
        parameters: opened.plan.parameters,
        sampling,
        max_tokens: arguments.predict,
        ctx_size: opened.request.ctx_size,
        width: opened.request.width,
        adapters: opened.adapters.iter().map(served_adapter).collect(),
        settings: settings(&opened),
        dials: opened.dials.clone(),
        digest,
        arenas: vec![
            ("weights", opened.plan.weight_bytes),
            ("mapped", opened.plan.mapped_bytes),
            ("kv_cache", opened.plan.kv_bytes),
            ("scratch", opened.plan.scratch_bytes),
            ("adapters", opened.plan.adapter_bytes),
        ],
        path: folder.display().to_string(),
    };
    let (kv_dir, kv_dir_size) = (arguments.kv_dir.clone(), arguments.kv_dir_size);
    let start: Start = Box::new(move |tokenizer| {
        // What is kept is for this model alone.
        let digest = kv_dir.as_ref().map(|_| opened.checkpoint.digest(opened.request.threads)).transpose()?;
        digest.iter().for_each(|digest| _ = known.set(digest.clone()));
        let (mut engine, pin) = opened.engine_around(tokenizer, eos)?;
        if let (Some(folder), Some(digest)) = (&kv_dir, digest) {
            engine.keep_on_disk(folder, kv_dir_size, &digest, |line| eprintln!("{line}"))?;
        }
        let read_bandwidth = figures::read_bandwidth(&mut engine);
        Ok(Started { engine, keep: Box::new(pin), read_bandwidth })
    });
    let at = match &config.listen {
        Listen::Unix(path) => path.display().to_string(),
        Listen::Tcp(address) => address.to_string(),
    };
    let listening = |address: Option<SocketAddr>| match address {
        Some(address) => eprintln!("listening on http://{address}"),
        None => eprintln!("listening on {at}"),
    };
    serve(config, served, start, listening, |sandbox| eprintln!("ready; {sandbox}")).map_err(|error| match error {
        ServeError::NoKey(_) => Failure::Usage(error.to_string()),
        error => error.into(),
    })
}

/// How the model's files are digested when somebody asks, and where a digest that is known already is kept.
fn digest(folder: &Path) -> Result<(Arc<OnceLock<String>>, ComputeDigest), Failure> {
    // The files as they are now, whatever becomes of their names.
    let checkpoint = Checkpoint::open(folder)?;
    let known = Arc::new(OnceLock::<String>::new());
    let kept = Arc::clone(&known);
    // One thread: answers are computed meanwhile.
    let digest = move || match kept.get() {
        Some(digest) => Ok(digest.clone()),
        None => checkpoint.digest(1).map_err(|error| error.to_string()),
    };
    Ok((known, Arc::new(digest)))
}

fn served_adapter(adapter: &model::OpenAdapter) -> ServedAdapter {
    ServedAdapter { name: adapter.name.clone(), path: adapter.name.clone(), scale: adapter.scale }
}

/// What decides the bytes of answers, beside the model.
fn settings(opened: &Opened) -> String {
    let Opened { options, request, dials, .. } = opened;
    let kv = request.kv_dtype.name();
    let dials = if dials.is_empty() { String::new() } else { format!(", {dials}") };
    format!("isa {}, activations {}, kv {kv}{dials}", options.isa, options.activations)
}

fn names(arguments: &Serve) -> Vec<String> {
    if !arguments.alias.is_empty() {
        return arguments.alias.clone();
    }
    let folder = arguments.model.canonicalize().unwrap_or_else(|_| arguments.model.clone());
    vec![folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()]
}

fn config(arguments: &Serve) -> Result<ServerConfig, Failure> {
    let listen = match &arguments.unix_socket {
        Some(path) => Listen::Unix(path.clone()),
        None => Listen::Tcp(SocketAddr::new(arguments.host, arguments.port)),
    };
    if let Listen::Tcp(address) = &listen
        && !address.ip().is_loopback()
        && !arguments.allow_remote
    {
        let why =
            format!("`--host {}` can be reached by others; `--allow-remote` says that this is meant", address.ip());
        return Err(Failure::Usage(why));
    }
    Ok(ServerConfig {
        api_keys: keys(arguments)?,
        allowed_hosts: arguments.allowed_host.clone(),
        allowed_origins: arguments.allowed_origin.clone(),
        queue: arguments.queue_size,
        connections: arguments.connections.get(),
        body_bytes_max: usize::try_from(arguments.body_limit).unwrap_or(usize::MAX),
        grace: Duration::from_secs(arguments.grace),
        write_timeout: Duration::from_secs(arguments.timeout.max(1)),
        adapter_folder: arguments.lora_dir.clone(),
        ..ServerConfig::new(listen)
    })
}

/// The keys that were given, or the one that is made at the first start.
fn keys(arguments: &Serve) -> Result<Vec<String>, Failure> {
    if arguments.no_api_key {
        return Ok(Vec::new());
    }
    let mut keys: Vec<String> = arguments.api_key.iter().filter(|key| !key.is_empty()).cloned().collect();
    if let Some(file) = &arguments.api_key_file {
        keys.extend(key_file(file, false)?);
    }
    if keys.is_empty() {
        let file = state_folder(arguments)?.join("api-key");
        keys = key_file(&file, true)?;
        eprintln!("clients need the key in {}", file.display());
    }
    Ok(keys)
}

/// Where this user's programs keep what they need the next time.
fn state_folder(arguments: &Serve) -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    arguments
        .state_dir
        .clone()
        // A service's own, from systemd.
        .or_else(|| variable("STATE_DIRECTORY"))
        .or_else(|| variable("XDG_STATE_HOME").map(|folder| folder.join("nightmonk")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/state/nightmonk")))
        .ok_or_else(|| {
            let why =
                "there is no folder for the key that clients need; give `--state-dir`, `--api-key` or `--no-api-key`";
            Failure::Usage(why.into())
        })
}
