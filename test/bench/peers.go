package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ", ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

// peers returns the other programs to measure.
func (o options) peerTargets(ctx context.Context) (ts []target, err error) {
	for _, name := range o.peers {
		if name != "node-red" {
			return nil, fmt.Errorf("peer %q is unknown; there is node-red, others are given with -peer-cmd", name)
		}
		bin, err := o.nodeRED(ctx)
		if err != nil {
			return nil, fmt.Errorf("peer node-red: %w", err)
		}
		ts = append(ts, nodeREDTarget(bin))
	}
	for _, arg := range o.peerCmds {
		name, script, ok := strings.Cut(arg, "=")
		if !ok || name == "" || script == "" {
			return nil, fmt.Errorf("-peer-cmd %q is not NAME=COMMAND", arg)
		}
		ts = append(ts, peerCommand(name, script))
	}
	return ts, nil
}

// peerCommand is any program that a shell command starts. It gets LISTEN, a
// host and port; SINK, a URL; DIR, an empty directory. It answers GET /ready
// with 2xx once it works, and posts the body of each POST /in whose data.total
// is over 100 to SINK, unchanged.
func peerCommand(name, script string) target {
	return target{
		name: name, foreign: true, ready: peerReady,
		command: func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error) {
			cmd := exec.CommandContext(ctx, "sh", "-c", script)
			cmd.Env = append(os.Environ(), "LISTEN="+a.in, "SINK=http://"+a.sinks[0]+"/", "DIR="+dir)
			return cmd, nil
		},
	}
}

func peerReady(a addresses) string { return "http://" + a.in + "/ready" }

// nodeRED finds Node-RED in PATH or in the cache directory, where npm puts it
// when it is nowhere.
func (o options) nodeRED(ctx context.Context) (string, error) {
	if bin, err := exec.LookPath("node-red"); err == nil {
		return bin, nil
	}
	dir := o.peerDir
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "engine-bench", "node-red")
	}
	bin := filepath.Join(dir, "node_modules", ".bin", "node-red")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "installing node-red into %s\n", dir)
	if b, err := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--prefix", dir, "node-red").CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm install: %w\n%s", err, tail(b, 10))
	}
	return bin, nil
}

// nodeREDTarget does the task as a flow: HTTP in, a switch on data.total, an
// HTTP request on kept-alive connections. It answers at once and stores
// nothing; the editor is off.
func nodeREDTarget(bin string) target {
	return target{
		name: "node-red", foreign: true, ready: peerReady,
		command: func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error) {
			host, port, _ := strings.Cut(a.in, ":")
			type node map[string]any
			wires := func(ids ...string) [][]string { return [][]string{append([]string{}, ids...)} }
			flow, err := json.Marshal([]node{
				{"id": "tab", "type": "tab", "label": "bench"},
				{"id": "ready", "z": "tab", "type": "http in", "url": "/ready", "method": "get", "wires": wires("ok")},
				{"id": "ok", "z": "tab", "type": "http response", "statusCode": "200", "wires": wires()},
				{"id": "in", "z": "tab", "type": "http in", "url": "/in", "method": "post", "wires": wires("accepted", "filter")},
				{"id": "accepted", "z": "tab", "type": "http response", "statusCode": "202", "wires": wires()},
				{
					"id": "filter", "z": "tab", "type": "switch", "property": "payload.total", "propertyType": "msg",
					"rules": []node{{"t": "gt", "v": "100", "vt": "num"}}, "checkall": "true", "outputs": 1, "wires": wires("call"),
				},
				{"id": "call", "z": "tab", "type": "http request", "method": "POST", "ret": "txt", "url": "http://" + a.sinks[0] + "/", "persist": true, "wires": wires()},
			})
			if err != nil {
				return nil, err
			}
			settings := fmt.Sprintf(`module.exports = {flowFile: "flow.json", uiHost: %q, uiPort: %s, httpAdminRoot: false,
  telemetry: {enabled: false}, logging: {console: {level: "error"}}, apiMaxLength: "5mb"}`+"\n", host, port)
			for name, content := range map[string][]byte{"flow.json": flow, "settings.js": []byte(settings)} {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					return nil, err
				}
			}
			cmd := exec.CommandContext(ctx, bin, "--userDir", dir, "--settings", filepath.Join(dir, "settings.js"))
			cmd.Env = append(os.Environ(), "NODE_ENV=production")
			return cmd, nil
		},
	}
}
