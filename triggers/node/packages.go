package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
)

const (
	packageFile = "package.json"
	lockFile    = "package-lock.json"
	modulesDir  = "node_modules"
)

// packages is what has to be installed.
type packages struct {
	// manifest is the package.json, lock the package-lock.json or nil.
	manifest, lock []byte
}

// packages reads what has to be installed, nil for nothing. Packages given as
// paths are relative to their file.
func (c *Config) packages(root string) (*packages, error) {
	var doc map[string]any
	p := &packages{}
	at := root
	switch {
	case c.Package != "":
		file := triggers.Join(root, c.Package)
		at = filepath.Dir(file)
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			return nil, fmt.Errorf("%s is no JSON: %w", c.Package, err)
		}
		if p.lock, err = os.ReadFile(filepath.Join(at, lockFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	case len(c.Dependencies) > 0:
		deps := make(map[string]any, len(c.Dependencies))
		for name, version := range c.Dependencies {
			deps[name] = version
		}
		doc = map[string]any{"dependencies": deps}
	default:
		return nil, nil
	}
	manifest := map[string]any{"private": true}
	for _, key := range []string{"name", "version", "dependencies", "optionalDependencies", "devDependencies", "peerDependencies", "overrides", "engines"} {
		if v, ok := doc[key]; ok {
			manifest[key] = v
		}
	}
	for _, key := range []string{"dependencies", "optionalDependencies"} {
		deps, _ := doc[key].(map[string]any)
		for name, version := range deps {
			v, _ := version.(string)
			path, local := strings.CutPrefix(v, "file:")
			if !local && !strings.HasPrefix(v, "./") && !strings.HasPrefix(v, "../") {
				continue
			}
			if !local {
				path = v
			}
			deps[name] = "file:" + triggers.Join(at, path)
			p.lock = nil // it has the paths as they were
		}
	}
	var err error
	p.manifest, err = json.Marshal(manifest)
	return p, err
}

// modules returns the directory with the packages, made when there is none.
func (f *function) modules(ctx context.Context, program string, p *packages) (string, error) {
	if f.env.Data == "" {
		return "", errors.New("packages cannot be installed: there is no directory to keep them in")
	}
	var version strings.Builder
	if err := process.Run(ctx, &exec.Cmd{
		Path: program, Args: []string{program, "-p", "process.version+process.arch+process.versions.modules"}, Env: process.Environ(), Stdout: &version,
	}); err != nil {
		return "", fmt.Errorf("%s: %w", program, err)
	}
	sum := sha256.Sum256(slices.Concat([]byte(version.String()), p.manifest, []byte{0}, p.lock))
	dir := filepath.Join(f.env.Data, "node", "packages", hex.EncodeToString(sum[:12]))
	return filepath.Join(dir, modulesDir), f.installed.Open(ctx, dir, p, "packages", f.env.Logger, func(ctx context.Context, dir string) error {
		return f.install(ctx, p, dir)
	})
}

// passed are variables of the engine that say where packages come from.
var passed = []string{
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS",
	"NPM_CONFIG_REGISTRY", "npm_config_registry", "NPM_CONFIG_USERCONFIG", "npm_config_userconfig", "NPM_CONFIG_CACHE", "npm_config_cache", "NPM_CONFIG_OFFLINE", "npm_config_offline",
}

func (f *function) install(ctx context.Context, p *packages, dir string) error {
	npm, err := process.Find("npm", "")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, packageFile), p.manifest, 0o600); err != nil {
		return err
	}
	how := "install"
	if p.lock != nil {
		how = "ci"
		if err := os.WriteFile(filepath.Join(dir, lockFile), p.lock, 0o600); err != nil {
			return err
		}
	}
	args := []string{npm, how, "--omit=dev", "--install-links", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"}
	if err := process.Run(ctx, &exec.Cmd{Path: npm, Args: args, Dir: dir, Env: process.Environ(append(passed, f.cfg.InheritEnv...)...)}); err != nil {
		return fmt.Errorf("npm %s: %w", how, err)
	}
	return os.MkdirAll(filepath.Join(dir, modulesDir), 0o700) // npm makes none for nothing
}
