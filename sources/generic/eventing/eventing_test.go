package eventing_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sensor-engine/engine/sources/generic/eventing"
)

// TestGenerated: the generated files are those of generic.proto.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./gen", "-go", dir, "-python", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, kept := range map[string]string{
		"generic.pb.go": ".", "generic_grpc.pb.go": ".", "generic_pb2.py": "../../../examples/generic/python",
	} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(kept, name)); err != nil || string(got) != string(want) {
			t.Errorf("%s is out of date (%v): make gen", name, err)
		}
	}
}

// TestWire: names and numbers are those that existing servers have. What they
// do not know hurts them as little as an unknown field hurts us.
func TestWire(t *testing.T) {
	if m := eventing.Eventing_StartEventSource_FullMethodName; m != "/generic.Eventing/StartEventSource" {
		t.Errorf("the method is %s", m)
	}
	req, err := proto.Marshal(&eventing.EventSource{Name: "orders", Config: []byte("a: 1")})
	if want := "\x0a\x06orders\x12\x04a: 1"; err != nil || string(req) != want {
		t.Errorf("the request is %q (%v), want %q", req, err, want)
	}
	old := []byte("\x0a\x01n\x12\x07payload")
	var ev eventing.Event
	if err := proto.Unmarshal(protowire.AppendVarint(protowire.AppendTag(old, 99, protowire.VarintType), 7), &ev); err != nil || ev.GetName() != "n" || string(ev.GetPayload()) != "payload" || ev.GetId() != "" {
		t.Errorf("the event of an old server is %v (%v)", &ev, err)
	}
	// An old peer reads fields 1 and 2 of ours.
	raw, err := proto.Marshal(&eventing.Event{Name: "n", Payload: []byte("payload"), Id: "7", Cursor: "8"})
	if err != nil || string(raw[:len(old)]) != string(old) {
		t.Errorf("our event is %q (%v), want it to begin with %q", raw, err, old)
	}
}
