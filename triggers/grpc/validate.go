package grpc

import (
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
)

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if hint, text := checkURL(c.URL); c.URL != "" && text != "" {
		ck.Errorf("url", specs.CodeInvalidValue, hint, "%s", text)
	}
	if c.Insecure && c.TLS != nil {
		ck.Errorf("insecure", specs.CodeInvalidValue, "remove one of the two", "a plain text connection has no tls")
	}
	if c.Insecure && c.Auth != nil && !local(c.URL) {
		ck.Warnf("insecure", specs.CodeInvalidValue, "give tls", "the token of auth is sent over a plain text connection")
	}
	c.TLS.Validate(ck, "tls")
	if slices.Contains(slices.Collect(maps.Keys(c.Spec)), "") {
		ck.Errorf("spec", specs.CodeInvalidValue, "", "a key of spec is empty")
	}
	if c.Resource.Set {
		switch c.Resource.Root.(type) {
		case map[string]any, specs.Text:
		default:
			ck.Errorf("resource", specs.CodeInvalidValue, "an object with the fields to change", "resource is no object")
		}
	}
}

// local reports whether an address is of this machine.
func local(url string) bool {
	host, _, err := net.SplitHostPort(url)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()) || strings.HasPrefix(url, "unix:")
}

// checkURL tells what is wrong with an address, and what to do about it.
func checkURL(url string) (hint, text string) {
	scheme, rest, found := strings.Cut(url, "://")
	switch {
	case strings.HasPrefix(url, "unix:"), scheme == "dns", scheme == "passthrough":
		return "", ""
	case found:
		return "write " + strings.TrimRight(rest, "/") + ", and insecure: true for a connection without TLS", scheme + ":// is no address of a gRPC server"
	}
	host, port, err := net.SplitHostPort(url)
	if err != nil || host == "" || port == "" || strings.Contains(port, "/") {
		return "for example localhost:9000", "\"" + url + "\" is not host:port"
	}
	return "", ""
}
