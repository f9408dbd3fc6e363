"""boto3 against an S3 for tests/real: `s3_client.py URL`. Fails with what came back other than it was stored."""

import sys
import urllib.request

import boto3
from botocore.config import Config

# Not among them: keys with dot segments, which every URL resolves, and with control characters, which the gateway refuses.
KEYS = [
    "a//b", "/leading", "//two", "trailing/", "trailing//", "/", ".hidden", "...", "a/.b/..c", "end.",
    "ä ö", "日本/語", "a+b", "%2F", "a%2Fb", "%", "a%", "%61", "%00", "%252e%252e",
    "a;b=c", ";", "a;/..;b", '"q"', "<x>", "{x}|^`", "a\\b", "a:b@c", "a?b#c", "~t", "*", "(a)'!$&,=",
    "http://host/a?b", "x" * 900,
]  # fmt: skip

s3 = boto3.client(
    "s3",
    endpoint_url=sys.argv[1],
    aws_access_key_id="key",
    aws_secret_access_key="secret",
    region_name="us-east-1",
    verify=False,
    config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
)
BUCKET = {"Bucket": "bucket"}
s3.create_bucket(**BUCKET)

for key in KEYS:
    there, content = {**BUCKET, "Key": key}, key.encode()
    s3.put_object(**there, Body=content, Metadata={"kept": "yes"})
    assert s3.get_object(**there)["Body"].read() == content, key
    head = s3.head_object(**there)
    assert (head["ContentLength"], head["Metadata"]) == (len(content), {"kept": "yes"}), key
    part = s3.get_object(**there, Range="bytes=0-0")
    assert (part["Body"].read(), part["ContentRange"]) == (content[:1], f"bytes 0-0/{len(content)}"), key
    s3.copy_object(**BUCKET, Key=f"copy/{key}", CopySource=there)
    if sys.argv[1].startswith("http:"):
        url = s3.generate_presigned_url("get_object", Params=there)
        assert urllib.request.urlopen(url).read() == content, key

pages = s3.get_paginator("list_objects_v2").paginate(**BUCKET, PaginationConfig={"PageSize": 10})
listed = [found["Key"] for page in pages for found in page["Contents"]]
assert sorted(listed) == sorted(KEYS + [f"copy/{key}" for key in KEYS]), set(listed) ^ set(KEYS)
assert len(s3.list_objects_v2(**BUCKET, Prefix="a;b=")["Contents"]) == 1

there = {**BUCKET, "Key": "parts/ü;x"}
upload = {**there, "UploadId": s3.create_multipart_upload(**there)["UploadId"]}
content = [b"1" * (5 << 20), b"2" * 1000]
parts = [
    {"PartNumber": number, "ETag": s3.upload_part(**upload, PartNumber=number, Body=part)["ETag"]}
    for number, part in enumerate(content, 1)
]
s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
assert s3.get_object(**there)["Body"].read() == b"".join(content)

gone = s3.delete_objects(**BUCKET, Delete={"Objects": [{"Key": key} for key in [*listed, "parts/ü;x"]]})
assert len(gone["Deleted"]) == len(listed) + 1, gone.get("Errors")
s3.delete_bucket(**BUCKET)
try:
    s3.head_object(**there)
except s3.exceptions.ClientError as error:
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, error
