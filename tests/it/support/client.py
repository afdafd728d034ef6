"""Calls a server with Python's gRPC, on stubs generated from proto/, and prints what it answers."""

import sys
import tempfile
from importlib import import_module
from pathlib import Path

import grpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[3]


def generate(out):
    """Makes stubs of all of proto/, and of the health service, and makes them importable."""
    files = [str(path) for path in (ROOT / "proto").rglob("*.proto")]
    health = Path(out) / "health.proto"
    health.write_text(
        """
        syntax = "proto3";
        package grpc.health.v1;
        message HealthCheckRequest { string service = 1; }
        message HealthCheckResponse { int32 status = 1; }
        service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
        """
    )
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{out}", f"-I{well_known}"]
    arguments += [f"--python_out={out}", f"--grpc_python_out={out}", *files, str(health)]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")
    # The package that brings Envoy's program is called `envoy` as well: a proper package comes before it.
    (Path(out) / "envoy" / "__init__.py").touch()
    sys.path.insert(0, out)


def main(address):
    with tempfile.TemporaryDirectory() as out:
        generate(out)
        rls = import_module("envoy.service.ratelimit.v3.rls_pb2")
        rls_grpc = import_module("envoy.service.ratelimit.v3.rls_pb2_grpc")
        common = import_module("envoy.extensions.common.ratelimit.v3.ratelimit_pb2")
        health = import_module("health_pb2")
        health_grpc = import_module("health_pb2_grpc")

        channel = grpc.insecure_channel(address)
        status = health_grpc.HealthStub(channel).Check(health.HealthCheckRequest(), timeout=10).status
        print("health", "SERVING" if status == 1 else status)

        service = rls_grpc.RateLimitServiceStub(channel)

        def descriptor(value, **more):
            entry = common.RateLimitDescriptor.Entry(key="user", value=value)
            return common.RateLimitDescriptor(entries=[entry], **more)

        def ask(what, *descriptors):
            request = rls.RateLimitRequest(domain="api", descriptors=descriptors)
            response = service.ShouldRateLimit(request, timeout=10)
            code = rls.RateLimitResponse.Code.Name(response.overall_code)
            left = [str(status.limit_remaining) for status in response.statuses]
            headers = [f"{header.key}={header.value}" for header in response.response_headers_to_add]
            print(what, code, *left, *headers)

        for _ in range(4):
            ask("user=a", descriptor("a"))
        ask("user=b,user=a", descriptor("b"), descriptor("a"))
        ask("peek user=b", descriptor("b", hits_addend={"value": 0}))
        ask("give back user=a", descriptor("a", is_negative_hits=True))
        try:
            service.ShouldRateLimit(rls.RateLimitRequest(descriptors=[descriptor("a")]), timeout=10)
        except grpc.RpcError as error:
            print("empty domain", error.code().name)


main(sys.argv[1])
