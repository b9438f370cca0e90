// Package remote serves the resources of pulumi-command that reach a host over SSH.
package remote

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/retry"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	defaultUser           = "root"
	defaultPort           = 22.0
	defaultDialErrorLimit = 10
	// defaultPerDialTimeout is in seconds.
	defaultPerDialTimeout = 15
	// unlimitedDialErrors, given as dialErrorLimit, retries until the engine cancels.
	unlimitedDialErrors = -1
)

// Endpoint is what a connection and its bastion have in common. The defaults are the SDK's, repeated for languages and
// versions that don't send them.
type Endpoint struct {
	User               *string  `pulumi:"user,optional"`
	Password           *string  `pulumi:"password,optional" provider:"secret"`
	Host               string   `pulumi:"host"`
	Port               *float64 `pulumi:"port,optional"`
	PrivateKey         *string  `pulumi:"privateKey,optional" provider:"secret"`
	PrivateKeyPassword *string  `pulumi:"privateKeyPassword,optional" provider:"secret"`
	AgentSocketPath    *string  `pulumi:"agentSocketPath,optional"`
	DialErrorLimit     *int     `pulumi:"dialErrorLimit,optional"`
	PerDialTimeout     *int     `pulumi:"perDialTimeout,optional"`
	HostKey            *string  `pulumi:"hostKey,optional"`
}

// Connection says how to reach a host.
type Connection struct {
	Endpoint
	Proxy *ProxyConnection `pulumi:"proxy,optional"`
}

// ProxyConnection says how to reach the bastion between here and the host.
type ProxyConnection struct {
	Endpoint
}

// Annotate describes the type for the schema.
func (c *Connection) Annotate(a infer.Annotator) {
	a.Describe(c, "How to reach the host.")
	a.Describe(&c.Proxy, "The bastion through which the host is reached.")
	c.annotate(a)
}

// Annotate describes the type for the schema.
func (c *ProxyConnection) Annotate(a infer.Annotator) {
	a.Describe(c, "How to reach the bastion.")
	c.annotate(a)
}

func (e *Endpoint) annotate(a infer.Annotator) {
	a.Describe(&e.Host, "The address to connect to.")
	a.Describe(&e.User, "The user to log in as.")
	a.SetDefault(&e.User, defaultUser)
	a.Describe(&e.Port, "The TCP port to connect to.")
	a.SetDefault(&e.Port, defaultPort)
	a.Describe(&e.Password, "The user's password, also given to keyboard-interactive questions.")
	a.Describe(&e.PrivateKey, "The text of an SSH private key. It is tried before the password.")
	a.Describe(&e.PrivateKeyPassword, "The passphrase of the private key.")
	a.Describe(&e.AgentSocketPath, "The socket of an SSH agent. Default: the environment variable SSH_AUTH_SOCK.")
	a.Describe(&e.DialErrorLimit, "How many failed attempts to connect are retried. -1: without end.")
	a.SetDefault(&e.DialErrorLimit, defaultDialErrorLimit)
	a.Describe(&e.PerDialTimeout, "Seconds for one attempt to connect. 0: no limit.")
	a.SetDefault(&e.PerDialTimeout, defaultPerDialTimeout)
	a.Describe(&e.HostKey, "The host's public key. Not given: any key is accepted.")
}

func valueOr[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

func (e *Endpoint) address() string {
	return net.JoinHostPort(e.Host, strconv.Itoa(int(valueOr(e.Port, defaultPort))))
}

func (e *Endpoint) timeout() time.Duration {
	return time.Duration(valueOr(e.PerDialTimeout, defaultPerDialTimeout)) * time.Second
}

// clientConfig turns the endpoint into what the SSH library wants. The agent's connection, if there is one, is
// returned to be closed.
func (e *Endpoint) clientConfig() (*ssh.ClientConfig, func(), error) {
	config := &ssh.ClientConfig{
		User:            valueOr(e.User, defaultUser),
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // the published default when no host key is given
		Timeout:         e.timeout(),
	}
	if e.HostKey != nil {
		if err := pinHostKey(config, *e.HostKey); err != nil {
			return nil, nil, err
		}
	}
	signers, closeAgent, err := e.signers()
	if err != nil {
		return nil, nil, err
	}
	if signers != nil {
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(signers))
	}
	if e.Password != nil {
		password := *e.Password
		config.Auth = append(config.Auth, ssh.Password(password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, _ []bool) ([]string, error) {
				return slices.Repeat([]string{password}, len(questions)), nil
			}))
	}
	return config, closeAgent, nil
}

// pinHostKey accepts only the given key, in the format of an authorized_keys line. Its algorithms are moved to the
// front: an sshd has several host keys, and the first algorithm that both sides know decides which one it shows.
func pinHostKey(config *ssh.ClientConfig, line string) error {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return fmt.Errorf("hostKey: wanted a public key like \"ssh-ed25519 AAAA...\", found %q, so the host "+
			"can't be recognised; take it from the host's /etc/ssh/ssh_host_*_key.pub: %w", line, err)
	}
	config.HostKeyCallback = ssh.FixedHostKey(key)
	wanted := []string{key.Type()}
	if key.Type() == ssh.KeyAlgoRSA {
		wanted = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	for _, algorithm := range ssh.SupportedAlgorithms().HostKeys {
		if !slices.Contains(wanted, algorithm) {
			wanted = append(wanted, algorithm)
		}
	}
	config.HostKeyAlgorithms = wanted
	return nil
}

// signers offers the private key, then the agent's keys. The SSH library tries the method "publickey" once, so that
// both have to come from one callback. nil: there is neither.
func (e *Endpoint) signers() (func() ([]ssh.Signer, error), func(), error) {
	var keys []ssh.Signer
	if e.PrivateKey != nil {
		key, err := parsePrivateKey(*e.PrivateKey, e.PrivateKeyPassword)
		if err != nil {
			return nil, nil, err
		}
		keys = append(keys, key)
	}
	client, closeAgent, err := e.agent()
	if err != nil {
		return nil, nil, err
	}
	if client == nil && keys == nil {
		return nil, closeAgent, nil
	}
	return func() ([]ssh.Signer, error) {
		if client == nil {
			return keys, nil
		}
		held, err := client.Signers()
		if err != nil {
			return nil, fmt.Errorf("SSH agent: it has not named its keys: %w", err)
		}
		return append(slices.Clone(keys), held...), nil
	}, closeAgent, nil
}

func parsePrivateKey(text string, passphrase *string) (ssh.Signer, error) {
	if passphrase == nil {
		return ssh.ParsePrivateKey([]byte(text))
	}
	return ssh.ParsePrivateKeyWithPassphrase([]byte(text), []byte(*passphrase))
}

// agent connects to the agent that was named. One that only the environment names is used when no other way to log
// in was given, so that a forgotten SSH_AUTH_SOCK can't break a connection that doesn't need it. It has as long as one
// attempt to connect, of which its answers are a part: the SSH library would wait for them without end.
func (e *Endpoint) agent() (agent.ExtendedAgent, func(), error) {
	path := valueOr(e.AgentSocketPath, "")
	if path == "" && e.PrivateKey == nil && e.Password == nil {
		path = os.Getenv("SSH_AUTH_SOCK")
	}
	if path == "" {
		return nil, func() {}, nil
	}
	socket, err := net.Dial("unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("SSH agent: %w", err)
	}
	if limit := e.timeout(); limit > 0 {
		if err := socket.SetDeadline(time.Now().Add(limit)); err != nil {
			socket.Close()
			return nil, nil, fmt.Errorf("SSH agent: %w", err)
		}
	}
	return agent.NewClient(socket), func() { socket.Close() }, nil
}

// dial connects to the host, through its bastion if there is one, and retries as the connection says. The returned
// function closes all that was opened.
func (c *Connection) dial(ctx context.Context) (*ssh.Client, func(), error) {
	if c.Proxy == nil {
		client, err := c.connect(ctx, "Dial", (&net.Dialer{Timeout: c.timeout()}).DialContext)
		if err != nil {
			return nil, nil, err
		}
		return client, func() { client.Close() }, nil
	}
	bastion, err := c.Proxy.connect(ctx, "Dial proxy", (&net.Dialer{Timeout: c.Proxy.timeout()}).DialContext)
	if err != nil {
		return nil, nil, fmt.Errorf("proxy: %w", err)
	}
	client, err := c.connect(ctx, "Dial", bastion.DialContext)
	if err != nil {
		bastion.Close()
		return nil, nil, fmt.Errorf("proxy: %w", err)
	}
	return client, func() { client.Close(); bastion.Close() }, nil
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// connect opens an SSH connection. Every failure is retried, a wrong key or password too: a host that is booting
// answers with anything.
func (e *Endpoint) connect(ctx context.Context, what string, dial dialer) (*ssh.Client, error) {
	limit := valueOr(e.DialErrorLimit, defaultDialErrorLimit)
	var client *ssh.Client
	done, _, err := retry.Until(ctx, retry.Acceptor{
		Accept: func(try int, _ time.Duration) (bool, any, error) {
			config, closeAgent, failure := e.clientConfig()
			if failure != nil {
				return false, nil, failure
			}
			defer closeAgent()
			if client, failure = attempt(ctx, dial, e.address(), config); failure == nil {
				return true, nil, nil
			}
			if ctx.Err() != nil {
				return false, nil, ctx.Err()
			}
			return false, nil, judge(ctx, what, try, limit, failure)
		},
	})
	if err == nil && !done {
		err = ctx.Err()
	}
	return client, err
}

// judge says whether a failed attempt is the last one: nil when another one follows. limit is the number of failures
// that are forgiven: with 2, the third attempt is the last.
func judge(ctx context.Context, what string, try, limit int, failure error) error {
	limitText := "inf"
	if limit > unlimitedDialErrors {
		if try >= limit {
			return fmt.Errorf("after %d failed attempts: %w", limit, failure)
		}
		limitText = strconv.Itoa(limit)
	}
	p.GetLogger(ctx).InfoStatusf("%s %d/%s failed: retrying", what, try+1, limitText)
	return nil
}

// attempt makes one connection. The time limit holds for the TCP connection and the SSH handshake together, so that
// a host that accepts and then says nothing counts as a failed attempt.
func attempt(ctx context.Context, dial dialer, address string, config *ssh.ClientConfig) (*ssh.Client, error) {
	limited, release := ctx, context.CancelFunc(func() {})
	if config.Timeout > 0 {
		limited, release = context.WithTimeout(ctx, config.Timeout)
	}
	defer release()
	conn, err := dial(limited, "tcp", address)
	if err != nil {
		return nil, err
	}
	// A connection through a bastion has no deadlines of its own: closing it works for both.
	stop := context.AfterFunc(limited, func() { conn.Close() })
	connection, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if !stop() && err == nil {
		err = fmt.Errorf("ssh: handshake failed: %w", limited.Err())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(connection, channels, requests), nil
}
