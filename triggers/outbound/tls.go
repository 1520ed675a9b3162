// Package outbound owns how functions reach other machines: the material of
// their TLS connections, what dials them, the guard against addresses that an
// event must not choose, and what is made of answers whatever they say: their
// size, when to ask again, their words in errors. It must not know what is sent.
package outbound

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// TLS says how TLS connections are made.
type TLS struct {
	CA                 specs.TextOrSecret `yaml:"ca" doc:"Authorities to trust instead of the system's: a PEM file, relative to this file, or a secret with the PEM itself."`
	Cert               specs.TextOrSecret `yaml:"cert" doc:"Certificate of this client: a PEM file or a secret; read again for every new connection, as key."`
	Key                specs.TextOrSecret `yaml:"key" doc:"Key of the client's certificate: a PEM file or a secret."`
	ServerName         string             `yaml:"serverName" doc:"Name the server's certificate must have, when it is not that of the address."`
	InsecureSkipVerify bool               `yaml:"insecureSkipVerify" doc:"Accept any certificate. For experiments only."`
}

// given reports whether a field of TLS is there.
func given(t specs.TextOrSecret) bool { return t.Secret != nil || t.Text.Value != "" }

// Validate reports to ck, at the path field, what the types cannot say.
func (t *TLS) Validate(ck *specs.Checker, field string) {
	if t == nil {
		return
	}
	if given(t.Cert) != given(t.Key) {
		ck.Errorf(field, specs.CodeInvalidValue, "give both or neither", "a client certificate needs cert and key")
	}
	for _, m := range t.material() {
		if _, ok := triggers.Literal(m.value.Text); !ok {
			ck.Errorf(field+"."+m.name, specs.CodeInvalidValue, "a file, or {secret: {name, key}}", "%s has no templates", m.name)
		}
	}
}

// Check reports to ck what is wrong with the files, which are relative to dir.
func (t *TLS) Check(ck *specs.Checker, field, dir string) {
	if t == nil {
		return
	}
	for _, m := range t.material() {
		if m.value.Secret != nil || m.value.Text.Value == "" {
			continue
		}
		if pem, err := os.ReadFile(triggers.Join(dir, m.value.Text.Value)); err != nil {
			triggers.Unreadable(ck, field+"."+m.name, m.value.Text.Value, err)
		} else if m.name == "ca" && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			ck.Errorf(field+"."+m.name, specs.CodeInvalidValue, "", "%s holds no PEM certificate", m.value.Text.Value)
		}
	}
	if ck.Found().HasErrors() || t.Cert.Text.Value == "" || t.Key.Text.Value == "" {
		return
	}
	if _, err := tls.LoadX509KeyPair(triggers.Join(dir, t.Cert.Text.Value), triggers.Join(dir, t.Key.Text.Value)); err != nil {
		ck.Errorf(field+".cert", specs.CodeInvalidValue, "", "cert and key: %v", err)
	}
}

type material struct {
	name  string
	value specs.TextOrSecret
}

func (t *TLS) material() []material {
	return []material{{"ca", t.CA}, {"cert", t.Cert}, {"key", t.Key}}
}

// ID tells whether two configs make the same connections.
func (t *TLS) ID(dir string) string {
	if t == nil {
		return ""
	}
	var b strings.Builder
	for _, m := range t.material() {
		switch {
		case m.value.Secret != nil:
			fmt.Fprintf(&b, "secret %q %q %q\n", m.value.Secret.Name, m.value.Secret.Key, m.value.Prefix)
		case m.value.Text.Value != "":
			fmt.Fprintf(&b, "file %q\n", triggers.Join(dir, m.value.Text.Value))
		default:
			b.WriteByte('\n')
		}
	}
	fmt.Fprintf(&b, "%q %v", t.ServerName, t.InsecureSkipVerify)
	return b.String()
}

// Files are the files whose change needs new connections, as absolute as dir.
func (t *TLS) Files(dir string) []string {
	if t == nil || t.CA.Text.Value == "" {
		return nil
	}
	return []string{triggers.Join(dir, t.CA.Text.Value)}
}

// Config returns the config of connections, nil for nil. The authorities are
// read now, the client's certificate for every handshake. secret resolves
// secrets; nil when there are none.
func (t *TLS) Config(dir string, secret func(specs.SecretRef) (string, error)) (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	read := func(name string, v specs.TextOrSecret) ([]byte, error) {
		if v.Secret == nil {
			pem, err := os.ReadFile(triggers.Join(dir, v.Text.Value))
			if err != nil {
				return nil, fmt.Errorf("tls.%s: %s: %w", name, v.Text.Value, triggers.WithoutPath(err))
			}
			return pem, nil
		}
		if secret == nil {
			return nil, fmt.Errorf("tls.%s: there are no secrets here", name)
		}
		s, err := secret(*v.Secret)
		return []byte(v.Prefix + s), err
	}
	cfg := &tls.Config{ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify, MinVersion: tls.VersionTLS12} //nolint:gosec // asked for by the spec
	if given(t.CA) {
		pem, err := read("ca", t.CA)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("tls.ca holds no PEM certificate")
		}
	}
	if given(t.Cert) {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := read("cert", t.Cert)
			if err != nil {
				return nil, err
			}
			key, err := read("key", t.Key)
			if err != nil {
				return nil, err
			}
			pair, err := tls.X509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("tls.cert and tls.key: %w", err)
			}
			return &pair, nil
		}
	}
	return cfg, nil
}
