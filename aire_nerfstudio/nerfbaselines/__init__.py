"""These methods for NerfBaselines, where its package is installed; nothing else imports this room."""
