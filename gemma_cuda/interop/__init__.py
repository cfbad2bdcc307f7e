"""The ops in other frameworks. Only the modules named after a framework import it, and nothing else imports them."""
