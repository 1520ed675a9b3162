// Command gen makes the code of a contract such as generic.proto: Go for the
// engine and for servers in Go, and the messages for servers in Python. It needs
// no protoc: the compiler is a library, and the plugins are tools of this module.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	file := flag.String("file", "generic.proto", "name of the contract")
	dir := flag.String("dir", ".", "its directory")
	goOut := flag.String("go", ".", "directory for the Go code")
	pyOut := flag.String("python", "", "directory for the Python code; none when empty")
	flag.Parse()
	if err := generate(context.Background(), *file, *dir, *goOut, *pyOut); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate(ctx context.Context, file, dir, goOut, pyOut string) error {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments
	}
	files, err := compiler.Compile(ctx, file)
	if err != nil {
		return err
	}
	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: []string{file}, Parameter: new("paths=source_relative")}
	for _, fd := range withImports(nil, files[0]) {
		req.ProtoFile = append(req.ProtoFile, protodesc.ToFileDescriptorProto(fd))
	}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		if err := run(ctx, plugin, req, goOut); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	if pyOut == "" {
		return nil
	}
	return python(files[0], pyOut)
}

// withImports lists the files fd needs before fd itself.
func withImports(list []protoreflect.FileDescriptor, fd protoreflect.FileDescriptor) []protoreflect.FileDescriptor {
	imports := fd.Imports()
	for i := range imports.Len() {
		list = withImports(list, imports.Get(i).FileDescriptor)
	}
	return append(list, fd)
}

// run gives a plugin of protoc its request and writes what it answers.
func run(ctx context.Context, plugin string, req *pluginpb.CodeGeneratorRequest, out string) error {
	in, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return err
	}
	answer := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(raw, answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return fmt.Errorf("%s", answer.GetError())
	}
	for _, f := range answer.File {
		if err := os.WriteFile(filepath.Join(out, f.GetName()), []byte(f.GetContent()), 0o644); err != nil { //nolint:gosec // source code is for everyone
			return err
		}
	}
	return nil
}

// python writes what protoc's own generator writes, without the part that ties
// it to one version of the library: any from 3.20 on takes it.
func python(fd protoreflect.FileDescriptor, out string) error {
	desc := protodesc.ToFileDescriptorProto(fd)
	desc.SourceCodeInfo = nil
	desc.Options = (*descriptorpb.FileOptions)(nil)
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(desc)
	if err != nil {
		return err
	}
	file := fd.Path()
	module := strings.TrimSuffix(file, ".proto") + "_pb2"
	var b strings.Builder
	b.WriteString(`# Code generated from ` + file + `. DO NOT EDIT.
"""The messages of ` + file + `, for protobuf 3.20 or newer."""

from google.protobuf import descriptor_pool
from google.protobuf import timestamp_pb2  # noqa: F401 (imported by the descriptor)
from google.protobuf.internal import builder

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
`)
	for len(raw) > 0 {
		n := min(len(raw), 20)
		b.WriteString(`    b"`)
		for _, c := range raw[:n] {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
		b.WriteString("\"\n")
		raw = raw[n:]
	}
	b.WriteString(`)

builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "` + module + `", globals())
`)
	return os.WriteFile(filepath.Join(out, module+".py"), []byte(b.String()), 0o644) //nolint:gosec // source code is for everyone
}
