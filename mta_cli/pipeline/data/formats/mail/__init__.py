"""Mail: mailboxes and single mails, and the user's replies in them."""
