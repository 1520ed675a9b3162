package secrets

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

const canary = `c4n"ary/+<&>?=\ü-0123456789`

func TestMask(t *testing.T) {
	m := &Masker{}
	m.Add(canary, "abcd", "abcdef", "xyz")
	quoted, err := json.Marshal(map[string]string{"v": canary})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"plain": "a " + canary + " b", "twice": canary + canary, "json": string(quoted),
		"go": fmt.Sprintf("%q", canary), "query": url.QueryEscape(canary), "path": url.PathEscape(canary),
		"hex": hex.EncodeToString([]byte(canary)), "HEX": fmt.Sprintf("%X", canary),
		"cut": "the output ends here: " + canary[:20],
	} {
		masked := m.MaskString(text)
		if strings.Contains(masked, "ary/") || strings.Contains(masked, "3031323334") || !strings.Contains(masked, "***") {
			t.Errorf("%s: %s", name, masked)
		}
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		for _, user := range []string{"", "u", "us", "use", "user:"} {
			full := enc.EncodeToString([]byte(user + canary + "tail"))
			masked := m.MaskString("Basic " + full)
			if len(masked) > len(full)/2 || !strings.Contains(masked, "***") {
				t.Errorf("base64 of %q + secret: %s of %s", user, masked, full)
			}
		}
	}
	for in, want := range map[string]string{
		"": "", "a": "a", "xyz": "xyz", "nothing": "nothing", "abcd": "***", "abcdef": "***", "abcdeabcd": "***e***",
		"abc": "abc", "aabcdd": "a***d",
	} {
		if got := m.MaskString(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		b := []byte(in)
		if got := m.Mask(b); string(got) != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		} else if string(b) != in {
			t.Errorf("%q was changed in place", in)
		}
	}
	if err := m.MaskError(fmt.Errorf("open abcd: %w", fs.ErrNotExist)); err.Error() != "open ***: file does not exist" || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(m.Writer(&out), nil)).Info("x", "token", canary)
	slog.New(slog.NewJSONHandler(m.Writer(&out), nil)).Info("x", "token", canary)
	if strings.Contains(out.String(), "0123456789") || strings.Count(out.String(), "***") != 2 {
		t.Error(out.String())
	}
	pem := "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nq8Zx12/short\n-----END KEY-----\n"
	m.Add(pem)
	if got := m.MaskString("line MIIEvQIBADANBgkqhkiG9w0BAQ."); got != "line ***." {
		t.Error(got)
	}
	if got := (&Masker{}).Mask([]byte("abcd")); string(got) != "abcd" {
		t.Errorf("%s", got)
	}
}

// The text between masks is never lost and nothing known survives.
func FuzzMask(f *testing.F) {
	f.Add("secret", "a secret b")
	f.Add("aaaa", "aaaaaaa")
	f.Fuzz(func(t *testing.T, secret, text string) {
		m := &Masker{}
		m.Add(secret)
		got := m.MaskString(text + secret + text)
		if len(secret) >= minValue && !strings.Contains(mask, secret) && !strings.Contains(secret, "*") && strings.Contains(got, secret) {
			// Text around a mask may spell the value anew; only then is it there.
			if strings.Contains(strings.ReplaceAll(got, mask, "\x00"), secret) {
				t.Errorf("%q in %q", secret, got)
			}
		}
		if len(secret) < minValue && got != text+secret+text {
			t.Errorf("%q changed without reason", got)
		}
	})
}

func set(file string, s *specs.Secret) *specs.Set {
	ref := specs.Ref{Kind: specs.KindSecret, Name: "shop"}
	return &specs.Set{Resources: map[specs.Ref]*specs.Resource{
		ref: {Kind: ref.Kind, Metadata: specs.Metadata{Name: ref.Name}, Pos: specs.Pos{File: file}, Spec: s},
	}}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	write := func(name, value string) {
		t.Helper()
		// Write a new file and rename it over: the way mounted secrets change.
		if err := os.WriteFile(filepath.Join(dir, "new"), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "first-value\n\n")
	write("crlf", "crlf-value\r\n")
	write("empty", "\n")
	write("big", strings.Repeat("x", maxFile+1))
	env := map[string]string{"HOOK": canary, "EMPTY": ""}
	m := &Masker{}
	r := NewResolver(func(k string) (string, bool) { v, ok := env[k]; return v, ok }, m)
	get := func(key string) (string, error) {
		return r.Secret(specs.SecretRef{Name: "shop", Key: key})
	}
	if _, err := get("hook"); err == nil || !strings.Contains(err.Error(), "secret shop, key hook: there is no Secret") {
		t.Error(err)
	}
	r.Apply(set(filepath.Join(dir, "specs.yaml"), &specs.Secret{
		Env:   map[string]string{"hook": "HOOK", "unset": "UNSET", "none": "EMPTY"},
		Files: map[string]string{"a": "a", "abs": filepath.Join(dir, "a"), "crlf": "crlf", "empty": "empty", "big": "big", "dir": ".", "gone": "gone"},
	}))
	for key, want := range map[string]string{"hook": canary, "a": "first-value\n", "abs": "first-value\n", "crlf": "crlf-value"} {
		if v, err := get(key); v != want || err != nil {
			t.Errorf("%s: %q, %v", key, v, err)
		}
	}
	for key, want := range map[string]string{
		"unset": "UNSET is not set", "none": "is empty", "empty": "is empty", "big": "larger than", "dir": "not a regular file",
		"gone": "no such file", "other": "no such key",
	} {
		if v, err := get(key); v != "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", key, v, err)
		}
	}
	write("a", "second-valu\n\n")
	if v, err := get("a"); v != "second-valu\n" || err != nil {
		t.Errorf("after a change: %q, %v", v, err)
	}
	if got := m.MaskString(canary + " first-value\n second-valu\n "); got != "*** *** *** " {
		t.Errorf("not masked: %q", got)
	}
	pinned, other := r.Pin([]string{"shop", "none"}), r.Pin(nil)
	r.Apply(&specs.Set{})
	if _, err := get("a"); err == nil {
		t.Error("a removed Secret still resolves")
	}
	if len(r.files) != 0 {
		t.Error("contents of files are kept")
	}
	// Who has pinned it reads on what it names, as it is now.
	write("a", "third")
	ref := specs.SecretRef{Name: "shop", Key: "a"}
	if v, err := pinned.Secret(ref); v != "third" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	r.Apply(set(filepath.Join(dir, "specs.yaml"), &specs.Secret{Env: map[string]string{"a": "HOOK"}}))
	for _, s := range []struct {
		of interface {
			Values(string) (map[string]string, error)
		}
		want string
	}{{other, canary}, {r, canary}, {pinned, ""}} { // not all that was pinned can be read
		if v, err := s.of.Values("shop"); v["a"] != s.want || (err == nil) != (s.want != "") {
			t.Errorf("%v, %v", v, err)
		}
	}
}

func BenchmarkMask(b *testing.B) {
	m := &Masker{}
	for i := range 50 {
		m.Add(fmt.Sprintf("a-secret-token-%d", i*7919))
	}
	text := bytes.Repeat([]byte(`{"id":12345,"name":"some name","status":"ok"}`), 100)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		m.Mask(text)
	}
}
