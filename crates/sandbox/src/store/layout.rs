//! The OCI image layout around a snapshot: marker file, index, manifest (OCI image specification 1.1, "Image Layout", "Image Index",
//! "Image Manifest").

use std::collections::HashMap;

use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, ImageIndex, ImageIndexBuilder, ImageManifest,
    ImageManifestBuilder, MediaType, OciLayout, OciLayoutBuilder, SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::digest::{BlobId, Digest};
use super::directory::{Directory, blob_name};
use super::error::{Invalid, StoreError};
use super::tag::Tag;

pub(super) const ARTIFACT_TYPE: &str = "application/vnd.vellum.snapshot.v1";
pub(super) const CONFIG_TYPE: &str = "application/vnd.vellum.snapshot.config.v1+json";
pub(super) const LAYER_TYPE: &str = "application/vnd.vellum.snapshot.layer.v1";

const INDEX: &str = "index.json";
const MARKER: &str = "oci-layout";
const LAYOUT_VERSION: &str = "1.0.0";
const MARKER_LIMIT: u64 = 4 << 10;
/// Some 40,000 tags.
const INDEX_LIMIT: u64 = 16 << 20;
const MANIFEST_LIMIT: u64 = 1 << 20;

/// A snapshot's entry in the index.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) tag: String,
    pub(super) manifest: BlobId,
}

/// What a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) config: BlobId,
    pub(super) layers: Vec<BlobId>,
}

/// Makes a directory an OCI image layout, unless it is one. The marker comes last.
pub(super) fn mark(directory: &Directory) -> Result<(), StoreError> {
    if directory.has(MARKER) {
        return check_marker(directory);
    }
    let _lock = directory.lock()?;
    if !directory.has(INDEX) {
        write_index(directory, &empty_index()?)?;
    }
    let layout = OciLayoutBuilder::default()
        .image_layout_version(LAYOUT_VERSION)
        .build()
        .map_err(|error| Invalid::field("marker", error.to_string()).in_file(MARKER))?;
    let bytes = to_json(MARKER, &layout)?;
    directory.replace(MARKER, |sink| sink.write_all(&bytes))?;
    directory.sync()
}

/// That a directory is an OCI image layout of the known version.
pub(super) fn check_marker(directory: &Directory) -> Result<(), StoreError> {
    let bytes = directory.read(MARKER, MARKER_LIMIT)?;
    let layout: OciLayout = from_json(MARKER, &bytes)?;
    check(
        MARKER,
        "imageLayoutVersion",
        layout.image_layout_version(),
        LAYOUT_VERSION,
    )
}

/// The snapshots that the index names; other entries are left alone.
pub(super) fn entries(directory: &Directory) -> Result<Vec<Entry>, StoreError> {
    let index = read_index(directory)?;
    let tagged = index.manifests().iter().filter_map(|descriptor| {
        let tag = tag_of(descriptor)?.to_owned();
        // An index may hold images that are no snapshots.
        is_snapshot(descriptor).then(|| {
            let manifest = blob_of(INDEX, descriptor)?;
            Ok(Entry { tag, manifest })
        })
    });
    tagged.collect()
}

/// The snapshot of a tag.
pub(super) fn find(directory: &Directory, tag: &Tag) -> Result<Entry, StoreError> {
    let index = read_index(directory)?;
    let mut found = index
        .manifests()
        .iter()
        .filter(|descriptor| tag_of(descriptor) == Some(tag.as_str()));
    let descriptor = found.next().ok_or_else(|| StoreError::UnknownTag {
        tag: tag.as_str().to_owned(),
    })?;
    if found.next().is_some() {
        let problem = format!("names {} twice", tag.as_str());
        return Err(Invalid::field("manifests", problem).in_file(INDEX));
    }
    check(
        INDEX,
        "mediaType",
        descriptor.media_type().as_ref(),
        MediaType::ImageManifest.as_ref(),
    )?;
    if let Some(kind) = descriptor.artifact_type() {
        check(INDEX, "artifactType", kind.as_ref(), ARTIFACT_TYPE)?;
    }
    Ok(Entry {
        tag: tag.as_str().to_owned(),
        manifest: blob_of(INDEX, descriptor)?,
    })
}

/// Makes a tag name a manifest, in place of what it named before, or nothing. The caller holds the lock.
pub(super) fn set_tag(
    directory: &Directory,
    tag: &Tag,
    manifest: Option<&BlobId>,
) -> Result<(), StoreError> {
    let mut index = read_index(directory)?;
    let mut entries = index.manifests().clone();
    entries.retain(|descriptor| tag_of(descriptor) != Some(tag.as_str()));
    if let Some(manifest) = manifest {
        let mut descriptor = descriptor(MediaType::ImageManifest, manifest)?;
        descriptor.set_artifact_type(Some(MediaType::Other(ARTIFACT_TYPE.to_owned())));
        let name = (ANNOTATION_REF_NAME.to_owned(), tag.as_str().to_owned());
        descriptor.set_annotations(Some(HashMap::from([name])));
        entries.push(descriptor);
    }
    index.set_manifests(entries);
    write_index(directory, &index)
}

/// Reads a manifest, whose digest is always verified.
pub(super) fn read_manifest(
    directory: &Directory,
    id: &BlobId,
    max_layers: usize,
) -> Result<Manifest, StoreError> {
    let file = blob_name(&id.digest);
    let bytes = directory.read_blob(id, MANIFEST_LIMIT)?;
    let manifest: ImageManifest = from_json(&file, &bytes)?;
    let known = SCHEMA_VERSION.to_string();
    check(
        &file,
        "schemaVersion",
        &manifest.schema_version().to_string(),
        &known,
    )?;
    let kind = manifest.artifact_type().as_ref();
    check(
        &file,
        "artifactType",
        kind.map_or("", |kind| kind.as_ref()),
        ARTIFACT_TYPE,
    )?;
    let config = manifest.config();
    check(
        &file,
        "config.mediaType",
        config.media_type().as_ref(),
        CONFIG_TYPE,
    )?;
    if manifest.layers().len() > max_layers {
        let problem = format!("are {}, more than {max_layers}", manifest.layers().len());
        return Err(Invalid::field("layers", problem).in_file(&file));
    }
    let layers = manifest.layers().iter().map(|layer| {
        check(
            &file,
            "layers.mediaType",
            layer.media_type().as_ref(),
            LAYER_TYPE,
        )?;
        blob_of(&file, layer)
    });
    Ok(Manifest {
        config: blob_of(&file, config)?,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

/// Writes a manifest as a blob. Equal manifests give equal blobs.
pub(super) fn write_manifest(
    directory: &Directory,
    manifest: &Manifest,
) -> Result<BlobId, StoreError> {
    let layers = manifest.layers.iter();
    let layers = layers.map(|id| descriptor(MediaType::Other(LAYER_TYPE.to_owned()), id));
    let built = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .artifact_type(MediaType::Other(ARTIFACT_TYPE.to_owned()))
        .config(descriptor(
            MediaType::Other(CONFIG_TYPE.to_owned()),
            &manifest.config,
        )?)
        .layers(layers.collect::<Result<Vec<_>, _>>()?)
        .build()
        .map_err(|error| Invalid::field("manifest", error.to_string()).in_file("manifest"))?;
    directory.put_blob(&to_json("manifest", &built)?)
}

pub(super) fn to_json<T: Serialize>(file: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Json {
        file: file.to_owned(),
        source,
    })
}

pub(super) fn from_json<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Json {
        file: file.to_owned(),
        source,
    })
}

fn read_index(directory: &Directory) -> Result<ImageIndex, StoreError> {
    let bytes = directory.read(INDEX, INDEX_LIMIT)?;
    let index: ImageIndex = from_json(INDEX, &bytes)?;
    let known = SCHEMA_VERSION.to_string();
    check(
        INDEX,
        "schemaVersion",
        &index.schema_version().to_string(),
        &known,
    )?;
    Ok(index)
}

fn write_index(directory: &Directory, index: &ImageIndex) -> Result<(), StoreError> {
    let bytes = to_json(INDEX, index)?;
    directory.replace(INDEX, |sink| sink.write_all(&bytes))
}

fn empty_index() -> Result<ImageIndex, StoreError> {
    ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(Vec::new())
        .build()
        .map_err(|error| Invalid::field("index", error.to_string()).in_file(INDEX))
}

fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    annotations.get(ANNOTATION_REF_NAME).map(String::as_str)
}

fn is_snapshot(descriptor: &Descriptor) -> bool {
    let kind = descriptor.artifact_type().as_ref();
    kind.is_some_and(|kind| kind.as_ref() == ARTIFACT_TYPE)
}

fn blob_of(file: &str, descriptor: &Descriptor) -> Result<BlobId, StoreError> {
    let text = descriptor.digest().as_ref();
    let digest = Digest::parse(text).ok_or_else(|| StoreError::Version {
        file: file.to_owned(),
        field: "digest",
        found: text.to_owned(),
        known: "sha256".to_owned(),
    })?;
    Ok(BlobId {
        digest,
        len_bytes: descriptor.size(),
    })
}

fn descriptor(kind: MediaType, id: &BlobId) -> Result<Descriptor, StoreError> {
    let digest: Sha256Digest = id
        .digest
        .hex()
        .parse()
        .map_err(|_| Invalid::field("digest", "is none").in_file("manifest"))?;
    Ok(Descriptor::new(kind, id.len_bytes, digest))
}

/// That a file is of the version that this one knows.
fn check(file: &str, field: &'static str, found: &str, known: &str) -> Result<(), StoreError> {
    if found == known {
        return Ok(());
    }
    Err(StoreError::Version {
        file: file.to_owned(),
        field,
        found: found.to_owned(),
        known: known.to_owned(),
    })
}
