package trigger_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sensor-engine/engine/triggers/grpc/trigger"
)

// TestGenerated: the generated files are those of trigger.proto.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", "../../../sources/generic/eventing/gen", "-file", "trigger.proto", "-go", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"trigger.pb.go", "trigger_grpc.pb.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != string(want) {
			t.Errorf("%s is out of date (%v): make gen", name, err)
		}
	}
}

// TestWire: names and numbers are those that existing servers have.
func TestWire(t *testing.T) {
	for got, want := range map[string]string{
		trigger.Trigger_FetchResource_FullMethodName: "/triggers.Trigger/FetchResource",
		trigger.Trigger_Execute_FullMethodName:       "/triggers.Trigger/Execute",
		trigger.Trigger_ApplyPolicy_FullMethodName:   "/triggers.Trigger/ApplyPolicy",
	} {
		if got != want {
			t.Errorf("a method is %s, want %s", got, want)
		}
	}
	for want, m := range map[string]proto.Message{
		"\x0a\x01a":          &trigger.FetchResourceRequest{Resource: []byte("a")},
		"\x0a\x01b":          &trigger.FetchResourceResponse{Resource: []byte("b")},
		"\x0a\x01a\x12\x01b": &trigger.ExecuteRequest{Resource: []byte("a"), Payload: []byte("b")},
		"\x0a\x01c":          &trigger.ExecuteResponse{Response: []byte("c")},
		"\x0a\x01d":          &trigger.ApplyPolicyRequest{Request: []byte("d")},
		"\x08\x01\x12\x01e":  &trigger.ApplyPolicyResponse{Success: true, Message: "e"},
	} {
		if raw, err := proto.Marshal(m); err != nil || string(raw) != want {
			t.Errorf("%T is %q (%v), want %q", m, raw, err, want)
		}
	}
}
