// Package remote serves the resources of pulumi-command that reach a host over SSH.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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
	a.Describe(&e.PerDialTimeout, "Seconds for one TCP connection; the SSH handshake has no limit. 0: no limit.")
	a.SetDefault(&e.PerDialTimeout, defaultPerDialTimeout)
	a.Describe(&e.HostKey, "The host's public key. Not given: any key is accepted.")
}

func valueOr[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

// clientConfig turns the endpoint into what the SSH library wants. As in the published plugin, an agent that is named or that the environment
// names is connected to whatever else there is to log in with, and its answers have no limit; one key's algorithm is all that is offered.
func (e *Endpoint) clientConfig() (*ssh.ClientConfig, error) {
	config := &ssh.ClientConfig{
		User:            valueOr(e.User, defaultUser),
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // the published default when no host key is given
		Timeout:         time.Duration(valueOr(e.PerDialTimeout, defaultPerDialTimeout)) * time.Second,
	}
	if e.HostKey != nil {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(*e.HostKey))
		if err != nil {
			return nil, fmt.Errorf("failed to parse host key: %w", err)
		}
		config.HostKeyCallback, config.HostKeyAlgorithms = ssh.FixedHostKey(key), []string{key.Type()}
	}
	if e.PrivateKey != nil {
		key, err := parsePrivateKey(*e.PrivateKey, e.PrivateKeyPassword)
		if err != nil {
			return nil, err
		}
		config.Auth = append(config.Auth, ssh.PublicKeys(key))
	}
	if e.Password != nil {
		config.Auth = append(config.Auth, ssh.Password(*e.Password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, _ []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range answers {
					answers[i] = *e.Password
				}
				return answers, nil
			}))
	}
	if path := valueOr(e.AgentSocketPath, os.Getenv("SSH_AUTH_SOCK")); path != "" || e.AgentSocketPath != nil {
		socket, err := net.Dial("unix", path)
		if err != nil {
			return nil, err
		}
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(agent.NewClient(socket).Signers))
	}
	return config, nil
}

func parsePrivateKey(text string, passphrase *string) (ssh.Signer, error) {
	if passphrase == nil {
		return ssh.ParsePrivateKey([]byte(text))
	}
	return ssh.ParsePrivateKeyWithPassphrase([]byte(text), []byte(*passphrase))
}

// dial opens a connection, which nobody closes: it ends with this process. Every failure is retried, a wrong key or password too: a host that
// is booting answers with anything. The time limit is for TCP alone: a host that accepts and says nothing is waited for without end.
func (c *Connection) dial(ctx context.Context) (*ssh.Client, error) {
	if c.Proxy != nil {
		return nil, errors.New("this stand-in for the plugin of pulumi-command doesn't go through a proxy")
	}
	config, err := c.clientConfig()
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(c.Host, strconv.Itoa(int(valueOr(c.Port, defaultPort))))
	limit := valueOr(c.DialErrorLimit, defaultDialErrorLimit)
	done, client, err := retry.Until(ctx, retry.Acceptor{
		Accept: func(try int, _ time.Duration) (bool, any, error) {
			client, failure := ssh.Dial("tcp", address, config)
			if failure == nil {
				return true, client, nil
			}
			limitText := "inf"
			if limit >= 0 {
				// The limit is the number of failures that are forgiven: with 2, the third attempt is the last.
				if try >= limit {
					return false, nil, fmt.Errorf("after %d failed attempts: %w", limit, failure)
				}
				limitText = strconv.Itoa(limit)
			}
			p.GetLogger(ctx).InfoStatusf("Dial %d/%s failed: retrying", try+1, limitText)
			return false, nil, nil
		},
	})
	if err != nil || !done {
		return nil, errors.Join(err, ctx.Err())
	}
	return client.(*ssh.Client), nil
}
