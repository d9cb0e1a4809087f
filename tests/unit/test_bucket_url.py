"""Which bucket a URL names, and that what may be secret is not shown."""

from __future__ import annotations

import pytest

from runnel.common.errors import BadSettings
from runnel.reducer.store.bucket_url import BucketUrl, read_bucket_url

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("s3://models", BucketUrl(bucket="models"), "s3://models"),
        ("s3://models/", BucketUrl(bucket="models"), "s3://models"),
        ("s3://models/a/b%20c/", BucketUrl(bucket="models", prefix="a/b c"), "s3://models/a/b c"),
        (
            "s3://models/a?endpoint=http://127.0.0.1:9000/&region=eu-north-1&style=host&patience_s=2.5",
            BucketUrl(
                bucket="models",
                prefix="a",
                endpoint="http://127.0.0.1:9000",
                region="eu-north-1",
                bucket_in_host=True,
                patience_s=2.5,
            ),
            "s3://models/a at http://127.0.0.1:9000",
        ),
    ],
)
def test_a_url_is_read(text: str, url: BucketUrl, shown: str) -> None:
    assert read_bucket_url(text) == url
    assert str(url) == shown


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [("http://[::1]:9000", "::1"), ("http://minio:9000", "minio"), ("https://minio:9000", None), (None, None)],
)
def test_it_is_known_whether_tls_is_used(endpoint: str | None, host: str | None) -> None:
    assert BucketUrl(bucket="models", endpoint=endpoint).plaintext_host == host


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not the URL of a bucket"),
        ("models", "not the URL of a bucket"),
        ("https://models", "not the URL of a bucket"),
        ("s3://", "not the URL of a bucket"),
        ("s3:///models", "not the URL of a bucket"),
        ("s3://models#part", "not the URL of a bucket"),
        ("s3://[models", "is not a URL"),
        ("s3://models?endpoint", "is not a URL"),
        ("s3://models/a/../b", "empty part or dots"),
        ("s3://models/a//b", "empty part or dots"),
        ("s3://models?endpont=http://x&secret=hush", "not known: endpont, secret"),
        ("s3://models?endpoint=ftp://x", "endpoint that is not of the form"),
        ("s3://models?endpoint=http://me:hush@x", "endpoint that is not of the form"),
        ("s3://models?endpoint=http://x/path", "endpoint that is not of the form"),
        ("s3://models?endpoint=http://[x", "endpoint that is not of the form"),
        ("s3://models?style=virtual", "style that is not one of path and host"),
        ("s3://models?patience_s=soon", "patience_s"),
        ("s3://models?patience_s=0", "patience_s"),
        ("s3://models?patience_s=nan", "patience_s"),
        ("s3://AKIA:hush@models", "user or password"),
    ],
)
def test_what_is_no_bucket_is_refused_and_not_shown(text: str, told: str) -> None:
    with pytest.raises(BadSettings, match=told) as caught:
        read_bucket_url(text)
    assert caught.value.fields == {"key": "blobs"}
    assert "hush" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
